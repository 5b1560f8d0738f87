//! `addresses`: the interface has what the metadata service says that it has.

use super::imds;
use crate::console::say;
use crate::net::Net;
use crate::{clock, executor};
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

const EVERY_US: u64 = 500_000;

/// Looks again and again, and says each change.
pub async fn follow(net: Rc<Net>) {
    let mut known = Vec::new();
    loop {
        let start_us = clock::now_us();
        if let Some(text) = imds::private_addresses(&net).await {
            let addresses: Vec<_> = text.lines().filter_map(|line| line.parse().ok()).collect();
            if addresses != known {
                let held = net.add_addresses(&addresses);
                let names: Vec<String> = text.lines().map(String::from).collect();
                say!("addresses: held={held} {}", names.join(","));
                known = addresses;
            }
        }
        executor::sleep_until(start_us + EVERY_US).await;
    }
}
