//! What an instance costs control in memory: its rows in the view, and their keys.

use crate::world::world;

const BEFORE: usize = 2_000;
/// So many more that two MiB of buffers, which any moment may see, are 200 bytes of each.
const AFTER: usize = 12_000;
/// What the bench allows between 10,000 and 110,000 of them, too.
const LIMIT_BYTES: usize = 4_096;

fn rss_bytes(pid: u32) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.parse::<usize>().unwrap() * 1_024
}

#[test]
fn an_instance_takes_four_kib_at_most() {
    let world = world(1 << 20);
    let mut last = String::new();
    let mut grow = |count: usize| {
        for _ in 0..count / 100 {
            let launched = world.run("100", &[("InstanceType", "t3.nano")]);
            last = launched.last().unwrap().clone();
        }
        world.await_state(&last, "running");
        rss_bytes(world.control.pid())
    };
    let before = grow(BEFORE);
    let each = grow(AFTER - BEFORE).saturating_sub(before) / (AFTER - BEFORE);
    println!("an instance takes {each} bytes");
    assert!(each <= LIMIT_BYTES, "{each} bytes");
}
