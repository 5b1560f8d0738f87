//! Sockets of the guest that the VMM's own tests boot: busybox has none of this family.
//! Built by itself, without a crate (`stock.rs`).
//!
//! `vsock send PORT`   connects to the host, sends stdin, prints what comes back
//! `vsock serve PORT`  accepts one connection and echoes it

use std::io::{Read, Write, copy, stdin, stdout};
use std::net::{Shutdown, TcpStream};
use std::os::fd::FromRawFd;

const AF_VSOCK: i32 = 40;
const SOCK_STREAM: i32 = 1;
/// `SO_VM_SOCKETS_CONNECT_TIMEOUT`, a `struct timeval`.
const CONNECT_TIMEOUT: i32 = 6;
/// The emulated host may be busy for longer than the kernel's own two seconds.
const PATIENCE: [i64; 2] = [60, 0];
const CID_HOST: u32 = 2;
const CID_ANY: u32 = u32::MAX;

/// `struct sockaddr_vm` (vsock(7)).
#[repr(C)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    zero: [u8; 4],
}

unsafe extern "C" {
    fn socket(family: i32, kind: i32, protocol: i32) -> i32;
    fn setsockopt(fd: i32, level: i32, option: i32, value: *const i64, len: u32) -> i32;
    fn connect(fd: i32, address: *const Address, len: u32) -> i32;
    fn bind(fd: i32, address: *const Address, len: u32) -> i32;
    fn listen(fd: i32, backlog: i32) -> i32;
    fn accept(fd: i32, address: *mut Address, len: *mut u32) -> i32;
}

fn check(result: i32) -> i32 {
    assert!(result >= 0, "{}", std::io::Error::last_os_error());
    result
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let port = words[2].parse().expect("a port");
    let send = words[1] == "send";
    let cid = if send { CID_HOST } else { CID_ANY };
    let address = Address { family: 40, reserved: 0, port, cid, zero: [0; 4] };
    // SAFETY: plain calls with an address of the size that is stated; descriptors are checked.
    // A stream of any family reads, writes and shuts down as TcpStream does it.
    let mut stream = unsafe {
        let fd = check(socket(AF_VSOCK, SOCK_STREAM, 0));
        check(setsockopt(fd, AF_VSOCK, CONNECT_TIMEOUT, PATIENCE.as_ptr(), 16));
        let fd = if send {
            check(connect(fd, &address, 16));
            fd
        } else {
            check(bind(fd, &address, 16));
            check(listen(fd, 1));
            println!("stock: vsock serves {port}");
            check(accept(fd, std::ptr::null_mut(), std::ptr::null_mut()))
        };
        TcpStream::from_raw_fd(fd)
    };
    if send {
        let mut back = stream.try_clone().expect("a second descriptor");
        let reader = std::thread::spawn(move || copy(&mut back, &mut stdout()));
        copy(&mut stdin(), &mut stream).expect("send");
        stream.shutdown(Shutdown::Write).expect("shut down");
        reader.join().expect("the reader").expect("receive");
    } else {
        let mut buffer = [0; 65536];
        loop {
            match stream.read(&mut buffer).expect("receive") {
                0 => break,
                count => stream.write_all(&buffer[..count]).expect("send"),
            }
        }
    }
}
