//! A request's way through a shard: popped, begun, driven, completed, published.

use super::op::{entry, run, signal, signal_now};
use super::slot::Step;
use super::token::{Place, Token};
use super::worker::Worker;
use crate::disk::{Backing, Disk, Stats};
use crate::request::{Kind, STATUS_OK};

impl Worker {
    /// Puts a queue in line to be served.
    pub(super) fn make_ready(&mut self, device: usize, queue: u16) {
        let running = self.devices[device]
            .as_mut()
            .and_then(|d| d.queues[usize::from(queue)].as_mut());
        if let Some(running) = running
            && running.accepts()
            && !std::mem::replace(&mut running.ready, true)
        {
            self.ready.push_back((device, queue));
        }
    }

    /// Pops what the driver offers, at most one ring's worth before others' turn.
    pub(super) fn serve(&mut self, device: usize, queue: u16) {
        let Some(running) = self.slot_queue(device, queue) else {
            return;
        };
        running.ready = false;
        for _ in 0..crate::queue::MAX_QUEUE_SIZE {
            let Some(running) = self.slot_queue(device, queue) else {
                return;
            };
            if !running.accepts() {
                return;
            }
            match running.queue.pop() {
                Ok(Some(head)) => {
                    if !self.take(device, queue, head) {
                        return;
                    }
                }
                Ok(None) => {
                    if !std::mem::replace(&mut running.parked, true) {
                        self.parked.push((device, queue));
                    }
                    return;
                }
                Err(error) => return self.broke(device, queue, &error),
            }
        }
        self.make_ready(device, queue);
    }

    /// Begins the request at `head`; false if it broke the queue.
    pub(super) fn take(&mut self, device: usize, queue: u16, head: u16) -> bool {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Box::default());
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        (slot.device, slot.queue) = (device, queue);
        let Some(dev) = self.devices[device].as_mut() else {
            return false;
        };
        let Some(running) = dev.queues[usize::from(queue)].as_mut() else {
            return false;
        };
        if let Err(error) = running.load(head, &dev.disk, slot, &mut self.scratch) {
            self.free.push(index);
            self.broke(device, queue, &error);
            return false;
        }
        running.outstanding += 1;
        if dev.waiting.is_empty()
            && let Some(window) = dev.admit(slot)
        {
            let step = slot.begin(&dev.disk, &dev.bounce, window);
            self.drive(index, step);
            self.wake_waiting(device);
        } else {
            dev.waiting.push_back(index);
        }
        true
    }

    /// The operation of the request in slot `index` ended.
    pub(super) fn advanced(&mut self, index: usize, result: i32) {
        let slot = &mut self.slots[index];
        let device = slot.device;
        if let Some(dev) = &self.devices[device] {
            let step = slot.advance(&dev.disk, &dev.bounce, result);
            self.drive(index, step);
            self.wake_waiting(device);
        }
    }

    /// Begins waiting requests as far as they can.
    fn wake_waiting(&mut self, device: usize) {
        while let Some(dev) = self.devices[device].as_mut()
            && let Some(&index) = dev.waiting.front()
            && let Some(window) = dev.admit(&self.slots[index])
        {
            dev.waiting.pop_front();
            let step = self.slots[index].begin(&dev.disk, &dev.bounce, window);
            self.drive(index, step);
        }
    }

    /// Runs a request until it waits for the ring or is done.
    fn drive(&mut self, index: usize, mut step: Step) {
        loop {
            let slot = &mut self.slots[index];
            let Some(dev) = &self.devices[slot.device] else {
                return;
            };
            match (step, &dev.disk.backing) {
                (Step::Submit(op), Backing::File(file)) if file.inline => {
                    let result = run(&op, file);
                    step = slot.advance(&dev.disk, &dev.bounce, result);
                }
                (Step::Submit(op), Backing::File(file)) => {
                    let entry = entry(&op, file).user_data(Token::Io(index as u32).pack());
                    self.on_ring += 1;
                    return self.push(entry);
                }
                (Step::Submit(_), Backing::Null) => return,
                (Step::Done(status), _) => return self.complete(index, status),
            }
        }
    }

    fn complete(&mut self, index: usize, status: u8) {
        let slot = &mut self.slots[index];
        self.free.push(index);
        let (device, queue) = (slot.device, slot.queue);
        let Some(dev) = self.devices[device].as_mut() else {
            return;
        };
        if let Some(window) = slot.take_window() {
            dev.bounce.give(window);
        }
        dev.exclusive = false;
        dev.running -= 1;
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
        running.queue.push(slot.head, written);
        running.outstanding -= 1;
        if !std::mem::replace(&mut running.touched, true) {
            self.touched.push((device, queue));
        }
    }

    /// Shows staged completions to their drivers and interrupts those that ask.
    pub(super) fn publish(&mut self) {
        for at in (0..self.touched.len()).rev() {
            let (device, queue) = self.touched[at];
            if let Some(running) = self.slot_queue(device, queue) {
                running.touched = false;
                if running.queue.publish() {
                    let generation = running.generation;
                    self.call(Place {
                        device: device as u16,
                        queue: queue as u8,
                        generation,
                    });
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
            running.call_busy = true;
            let entry = signal(call).user_data(Token::Call(place).pack());
            self.push(entry);
        }
    }

    fn broke(&mut self, device: usize, queue: u16, error: &dyn std::error::Error) {
        tracing::warn!(device, queue, %error, "queue broken by its driver");
        let Some(dev) = &mut self.devices[device] else {
            return;
        };
        Stats::bump(&dev.disk.stats.errors);
        let Some(running) = &mut dev.queues[usize::from(queue)] else {
            return;
        };
        running.broken = true;
        if let Some(err) = &running.err {
            let entry = signal(err).user_data(Token::Ignore.pack());
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
