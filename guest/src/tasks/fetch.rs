//! `http-get`: fetches a URL once and says what its body hashes to.

use super::Done;
use crate::console::say;
use crate::net::Net;
use crate::net::http::Request;
use crate::{clock, executor};
use alloc::rc::Rc;
use alloc::string::String;
use core::fmt::Write;
use ocs_probe_logic::url::Url;
use sha2::{Digest, Sha256};

const PATIENCE_US: u64 = 5_000_000;
const RETRY_US: u64 = 1_000_000;

/// Tries each second until there is an answer.
pub async fn get(net: Rc<Net>, url: Url, done: Done) {
    let mut failed_with = None;
    loop {
        let start_us = clock::now_us();
        net.solicit(url.server.ip());
        let mut bytes = 0u64;
        let mut hash = Sha256::new();
        let request = Request {
            server: url.server,
            method: "GET",
            path: &url.path,
            headers: "",
            patience_us: PATIENCE_US,
        };
        let result = request
            .send(&net, |piece| {
                bytes += piece.len() as u64;
                hash.update(piece);
                Ok(())
            })
            .await;
        match result {
            Ok(status) => {
                let us = clock::now_us() - start_us;
                let sha256 = hex(&hash.finalize());
                say!("http-get: {url} status={status} bytes={bytes} sha256={sha256} us={us}");
                done.set(true);
                return;
            }
            Err(error) if failed_with != Some(error) => {
                failed_with = Some(error);
                say!("http-get: {url} error={error}");
            }
            Err(_) => {}
        }
        executor::sleep_until(start_us + RETRY_US).await;
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
