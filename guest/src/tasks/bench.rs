//! `bench`: as much as a disk or a connection carries, and how long each request took.

use super::Done;
use crate::console::say;
use crate::net::tcp::Stream;
use crate::net::{Net, ring};
use crate::virtio::disk::{Disk, DiskError};
use crate::{clock, executor};
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use core::net::SocketAddr;
use core::task::Poll;
use ocs_probe_logic::latency::Latency;
use ocs_probe_logic::order::DiskBench;
use smoltcp::socket::udp as socket;
use smoltcp::wire::IpEndpoint;

const CLOSE_US: u64 = 1_000_000;
const CONNECT_US: u64 = 10_000_000;
const TCP_BUFFER_BYTES: usize = 64 << 10;
/// Datagrams that wait for the device.
const DATAGRAMS: usize = 32;
/// Ethernet, IPv4 and UDP.
const HEADERS_BYTES: u64 = 14 + 20 + 8;
/// How long the peer's Ethernet address may take.
const SOLICIT_US: u64 = 200_000;

/// Requests at random blocks, a constant number in flight; those of one disk complete in
/// any order but are awaited in the order they began, as a driver's queue is.
pub async fn disk(disk: &Disk, index: u8, load: DiskBench) -> Result<(), DiskError> {
    let blocks = disk.size_bytes() / load.block_bytes;
    if blocks == 0 {
        return Err(DiskError::OutOfRange);
    }
    let mut random = clock::entropy() | 1;
    let mut latency = Latency::default();
    let mut in_flight = VecDeque::with_capacity(usize::from(load.depth));
    let start_us = clock::now_us();
    let end_us = start_us + u64::from(load.for_ms) * 1000;
    let mut result = Ok(());
    loop {
        while result.is_ok()
            && in_flight.len() < usize::from(load.depth)
            && clock::now_us() < end_us
        {
            random = next(random);
            let at = random % blocks * load.block_bytes;
            let begun_us = clock::now_us();
            match request(disk, load, at).await {
                Ok(slot) => in_flight.push_back((slot, begun_us)),
                Err(error) => result = Err(error),
            }
        }
        let Some((slot, begun_us)) = in_flight.pop_front() else {
            break;
        };
        result = result.and(disk.finish(slot, |_| ()).await);
        latency.record(clock::now_us() - begun_us);
    }
    result?;
    let us = (clock::now_us() - start_us).max(1);
    say!(
        "bench: disk {index} {} block={} depth={} ops={} us={us} iops={} p50_us={} p99_us={} max_us={}",
        if load.write { "write" } else { "read" },
        load.block_bytes,
        load.depth,
        latency.total,
        latency.total * 1_000_000 / us,
        latency.percentile_us(50),
        latency.percentile_us(99),
        latency.max_us
    );
    Ok(())
}

async fn request(disk: &Disk, load: DiskBench, at: u64) -> Result<usize, DiskError> {
    // At most 64 KiB: the order language bounds it.
    let len = load.block_bytes as usize;
    if load.write {
        disk.start_write(at, len, |_| {}).await
    } else {
        disk.start_read(at, len).await
    }
}

/// Marsaglia's xorshift64.
fn next(mut state: u64) -> u64 {
    state ^= state << 13;
    state ^= state >> 7;
    state ^ (state << 17)
}

/// One connection to an echo server, its buffers kept full in both directions.
pub async fn tcp(net: Rc<Net>, to: SocketAddr, for_ms: u32, done: Done) {
    net.solicit(to.ip());
    let at_us = clock::now_us() + CONNECT_US;
    let connecting = Stream::connect(&net, to, TCP_BUFFER_BYTES);
    match executor::until(at_us, connecting).await {
        Some(Ok(stream)) => {
            echo(&stream, to, for_ms).await;
            stream.close(CLOSE_US).await;
        }
        Some(Err(outcome)) => say!("bench: tcp {to} error={outcome}"),
        None => say!("bench: tcp {to} error=timeout"),
    }
    done.set(true);
}

/// Datagrams one after the other, as fast as the device takes frames; it counts those that
/// have left the machine.
pub async fn udp(net: Rc<Net>, to: SocketAddr, datagram_bytes: u16, for_ms: u32, done: Done) {
    net.solicit(to.ip());
    executor::sleep_until(clock::now_us() + SOLICIT_US).await;
    let datagram = ring(datagram_bytes.into());
    let packets = |count, bytes| {
        socket::PacketBuffer::new(
            alloc::vec![socket::PacketMetadata::EMPTY; count],
            ring(bytes),
        )
    };
    let sending = packets(DATAGRAMS, DATAGRAMS * datagram.len().max(1));
    let sender = net.add(socket::Socket::new(packets(1, 1), sending));
    let bound = sender.filter(|sender| {
        let port = net.ephemeral_port();
        sender.with(|s: &mut socket::Socket| s.bind(port)).is_ok()
    });
    let Some(sender) = bound else {
        say!("bench: udp {to} error=no-socket");
        done.set(true);
        return;
    };
    let remote = IpEndpoint::new(to.ip().into(), to.port());
    let start_us = clock::now_us();
    let end_us = start_us + u64::from(for_ms) * 1000;
    let mut sent = 0u64;
    let go = |sent: &mut u64| {
        sender.with(|s: &mut socket::Socket| {
            let before = *sent;
            while s.can_send() && s.send_slice(&datagram, remote).is_ok() {
                *sent += 1;
            }
            *sent > before
        })
    };
    core::future::poll_fn(|_| {
        if go(&mut sent) {
            executor::wake_at(0);
        }
        executor::due(end_us)
    })
    .await;
    executor::wait(|| {
        let waiting = sender.with(|s: &mut socket::Socket| s.send_queue());
        (waiting == 0 && net.has_sent_all()).then_some(())
    })
    .await;
    let us = (clock::now_us() - start_us).max(1);
    let frame_bytes = u64::from(datagram_bytes) + HEADERS_BYTES;
    say!(
        "bench: udp {to} sent={sent} frame_bytes={frame_bytes} us={us} kbit_per_s={}",
        sent * frame_bytes * 8_000 / us
    );
    done.set(true);
}

async fn echo(stream: &Stream, to: SocketAddr, for_ms: u32) {
    let start_us = clock::now_us();
    let end_us = start_us + u64::from(for_ms) * 1000;
    let mut buffer = [0; 4096];
    let mut echoed_bytes = 0u64;
    let lost = core::future::poll_fn(|_| {
        let mut moved = false;
        loop {
            let sent = stream.try_send(&buffer);
            let received = stream.try_recv(&mut buffer);
            let (Ok(sent), Ok(received)) = (sent, received) else {
                return Poll::Ready(true);
            };
            let received = match received {
                Some(0) => return Poll::Ready(true),
                other => other.unwrap_or(0),
            };
            echoed_bytes += received as u64;
            if sent == 0 && received == 0 {
                break;
            }
            moved = true;
        }
        if moved {
            executor::wake_at(0);
        }
        executor::due(end_us).map(|()| false)
    })
    .await;
    let us = (clock::now_us() - start_us).max(1);
    say!(
        "bench: tcp {to} echoed_bytes={echoed_bytes} us={us} mbit_per_s={}{}",
        echoed_bytes * 8 / us,
        if lost { " broken" } else { "" }
    );
}
