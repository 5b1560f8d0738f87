//! A request's way out of a shard: completed, counted, shown to its driver.

use super::op::{signal, signal_now};
use super::token::{Place, Token};
use super::worker::Worker;
use crate::disk::{Disk, Stats};
use crate::request::{Kind, STATUS_OK};
use io_uring::squeue;
use std::time::Duration;

/// Interrupts of a queue of which the last is confirmed before there is another: what a
/// driver that fills its eventfd's counter can make the kernel keep.
const CALLS: u32 = 64;

impl Worker {
    /// The piece in slot `index` is done.
    pub(super) fn complete(&mut self, index: usize, status: u8) {
        let slot = &mut self.slots[index];
        let Some(dev) = self.devices[slot.device].as_mut() else {
            return;
        };
        if let Some(window) = slot.take_window() {
            dev.bounce.give(window);
        }
        dev.exclusive = false;
        dev.running -= 1;
        let request = slot.parent;
        if request == index {
            self.finish(index, status);
        } else {
            self.free.push(index);
            self.piece_ended(request, status);
        }
    }

    /// One piece less of a request; the last one completes it.
    pub(super) fn piece_ended(&mut self, request: usize, status: u8) {
        let whole = &mut self.slots[request];
        if status != STATUS_OK {
            whole.outcome = status;
        }
        whole.pieces -= 1;
        if whole.pieces == 0 {
            let outcome = whole.outcome;
            self.finish(request, outcome);
        }
    }

    /// Completes the request in slot `index`.
    fn finish(&mut self, index: usize, status: u8) {
        let slot = &mut self.slots[index];
        self.free.push(index);
        let (device, queue) = (slot.device, slot.queue);
        let Some(dev) = self.devices[device].as_mut() else {
            return;
        };
        count(&dev.disk, slot.kind, status);
        let Some(running) = dev.queues[usize::from(queue)].as_mut() else {
            return;
        };
        // SAFETY: `status` was translated in the memory that `running` keeps alive.
        unsafe { slot.status.write_volatile(status) };
        let written = match slot.kind {
            Kind::Read(_) | Kind::GetId if status == STATUS_OK => slot.data_bytes as u32 + 1,
            _ => 1,
        };
        running.log_chain(slot.head, &mut self.scratch);
        running.queue.push(slot.head, written);
        running.outstanding -= 1;
        if !std::mem::replace(&mut running.touched, true) {
            self.touched.push((device, queue));
        }
    }

    /// Shows staged completions to their drivers and interrupts those that ask.
    pub(super) fn publish(&mut self) {
        let looking = self.window.get() > Duration::ZERO;
        for at in (0..self.touched.len()).rev() {
            let (device, queue) = self.touched[at];
            if let Some(running) = self.slot_queue(device, queue) {
                running.touched = false;
                let wanted = running.queue.publish();
                // Its next request will be looked for: a kick would cost both sides.
                let looks = looking && !running.ready && !running.parked;
                if looks {
                    running.parked = true;
                    running.queue.disable_kicks();
                }
                running.log_used();
                if wanted {
                    let generation = running.generation;
                    self.call(Place {
                        device: device as u16,
                        queue: queue as u8,
                        generation,
                    });
                }
                if looks {
                    self.parked.push((device, queue));
                }
                self.settle(device, queue);
            }
        }
        self.touched.clear();
    }

    /// Interrupts a driver.
    pub(super) fn call(&mut self, place: Place) {
        let Some(running) = self.at(place) else {
            return;
        };
        let Some(call) = &running.call else {
            return;
        };
        if call.plain {
            signal_now(call);
        } else if running.call_busy {
            running.call_again = true;
        } else {
            running.calls += 1;
            running.call_busy = running.calls == CALLS;
            let mut entry = signal(call).user_data(Token::Call(place).pack());
            if running.call_busy {
                running.calls = 0;
                self.confirms += 1;
            } else {
                // Its completion would end the very sleep that it is submitted with.
                entry = entry.flags(squeue::Flags::SKIP_SUCCESS);
            }
            self.push(entry);
        }
    }
}

fn count(disk: &Disk, kind: Kind, status: u8) {
    let stats = &disk.stats;
    match (status, kind) {
        (STATUS_OK, Kind::Read(_)) => Stats::bump(&stats.reads),
        (STATUS_OK, Kind::Write(_)) => Stats::bump(&stats.writes),
        (STATUS_OK, Kind::Flush) => Stats::bump(&stats.flushes),
        (STATUS_OK, _) => {}
        _ => Stats::bump(&stats.errors),
    }
}
