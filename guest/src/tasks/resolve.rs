//! `resolve`: asks a name server again and again, and says each change of its answer.

use super::probes::udp_socket;
use crate::console::say;
use crate::net::{Handle, Net};
use crate::{clock, executor};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use core::net::IpAddr;
use ocs_probe_logic::dns::{self, Question};
use smoltcp::socket::udp;
use smoltcp::wire::IpEndpoint;

const PORT: u16 = 53;
const PATIENCE_US: u64 = 2_000_000;

/// Asks each time.
pub async fn run(net: Rc<Net>, question: Question, every_ms: u32, at: Option<IpAddr>) {
    let mut known = String::new();
    loop {
        let start_us = clock::now_us();
        let outcome = match at.or_else(|| net.resolver().map(IpAddr::V4)) {
            None => "error=no-server".into(),
            Some(server) => ask(&net, &question, server).await,
        };
        if outcome != known {
            say!("resolve: {} {outcome}", question.text);
            known = outcome;
        }
        executor::sleep_until(start_us + u64::from(every_ms) * 1_000).await;
    }
}

async fn ask(net: &Rc<Net>, question: &Question, server: IpAddr) -> String {
    net.solicit(server);
    let Some(socket) = udp_socket(net) else {
        return "error=unsent".into();
    };
    let id = clock::entropy() as u16;
    let to = IpEndpoint::new(server.into(), PORT);
    let message = question.message(id);
    let sent = socket.with(|s: &mut udp::Socket| s.send_slice(&message, to).is_ok());
    if !sent {
        return "error=unsent".into();
    }
    match executor::until(clock::now_us() + PATIENCE_US, heard(&socket, to, id)).await {
        Some(answer) => format!("server={server} {answer}"),
        None => format!("server={server} error=timeout"),
    }
}

async fn heard(socket: &Handle, from: IpEndpoint, id: u16) -> dns::Answer {
    executor::wait(|| {
        socket.with(|s: &mut udp::Socket| {
            let (data, meta) = s.recv().ok()?;
            dns::answer(data, id).filter(|_| meta.endpoint == from)
        })
    })
    .await
}
