//! A request's way into a shard: its turn, popped, cut, begun, driven.

use super::device::Lane;
use super::op::{entry, run, signal};
use super::share::DEPTH;
use super::slot::Step;
use super::token::Token;
use super::worker::Worker;
use crate::disk::{Backing, Stats};
use crate::qos::turns::QUANTUM;
use crate::qos::{Direction, cost};
use crate::request::{Kind, STATUS_OK};
use io_uring::squeue;

/// What memory's devices may be served in a row, in [`cost`]'s bytes' worth, before
/// those that were found idle are looked at: one large piece, some small requests.
const ROUND: u64 = QUANTUM as u64;
/// Bits of a time that do not matter to who shares the disk: about a millisecond.
const TICK_NS: u64 = (1 << 20) - 1;
/// Rounds after which idle ones are asked to kick instead, however busy the shard is.
const LOOKS: u32 = 256;

/// What became of a device's turn.
enum Turn {
    /// A piece of that cost began.
    Began(u64),
    /// It has no work.
    Idle,
    /// It has, but must wait.
    Waits,
}

impl Worker {
    /// Puts a queue in line to be served.
    pub(super) fn make_ready(&mut self, device: usize, queue: u16) {
        let Some(dev) = self.devices[device].as_mut() else {
            return;
        };
        if let Some(running) = dev.queues[usize::from(queue)].as_mut()
            && running.accepts()
            && !std::mem::replace(&mut running.ready, true)
        {
            dev.ready.push_back(queue);
            if !dev.asleep && !dev.full && dev.waiting.is_none() {
                self.turns[dev.lane as usize].wake(device);
            }
        }
    }

    /// May anything begin?
    pub(super) fn has_work(&self) -> bool {
        !self.turns[Lane::Memory as usize].is_empty()
            || (self.on_ring_cost < DEPTH && !self.turns[Lane::Disk as usize].is_empty())
    }

    /// Begins what may begin: by turns, as much as the disk may hold at once.
    pub(super) fn dispatch(&mut self) {
        self.now_ns = None;
        // A driver told not to kick is heard though another one never pauses.
        self.was_offered();
        self.looks += 1;
        if self.looks >= LOOKS {
            self.looks = 0;
            self.enable_kicks();
        }
        let mut round = 0;
        while round < ROUND
            && let Some(device) = self.turns[Lane::Memory as usize].whose()
        {
            round += self.turn(device, Lane::Memory);
            self.publish();
        }
        if !self.turns[Lane::Disk as usize].is_empty() {
            self.disk_round();
        }
    }

    fn disk_round(&mut self) {
        // Who shares the disk changes slowly.
        let now_ns = *self.now_ns.get_or_insert_with(crate::qos::now_ns) & !TICK_NS;
        self.share.look(now_ns);
        while self.on_ring_cost < DEPTH
            && let Some(device) = self.turns[Lane::Disk as usize].whose()
        {
            if let Some(dev) = &mut self.devices[device]
                && std::mem::replace(&mut dev.used_ns, now_ns) != now_ns
            {
                self.share.used(device, dev.disk.qos.weight(), now_ns);
            }
            self.turn(device, Lane::Disk);
        }
    }

    /// Serves a device as long as it is its turn; what that cost.
    fn turn(&mut self, device: usize, lane: Lane) -> u64 {
        let mut spent = 0;
        loop {
            let outcome = self.step(device);
            let turns = &mut self.turns[lane as usize];
            match outcome {
                Turn::Began(cost) => {
                    spent += cost;
                    if !turns.spend(device, cost)
                        || (lane == Lane::Disk && self.on_ring_cost >= DEPTH)
                    {
                        return spent;
                    }
                }
                Turn::Idle => {
                    turns.rest(device);
                    return spent;
                }
                Turn::Waits => {
                    turns.leave(device);
                    return spent;
                }
            }
        }
    }

    /// Begins a device's next piece.
    fn step(&mut self, device: usize) -> Turn {
        let Some(dev) = self.devices[device].as_mut() else {
            return Turn::Idle;
        };
        if dev.waiting.is_some() {
            return Turn::Waits;
        }
        if dev.lane == Lane::Disk && !self.share.admits(dev.held, dev.disk.qos.weight()) {
            dev.full = true;
            if dev.has_more() {
                self.share.held_up(device);
            }
            return Turn::Waits;
        }
        if let Some(request) = dev.cut {
            return Turn::Began(self.cut(device, request));
        }
        while let Some(dev) = self.devices[device].as_mut()
            && let Some(&queue) = dev.ready.front()
        {
            let running = dev.queues[usize::from(queue)].as_mut();
            let Some(running) = running.filter(|r| r.accepts()) else {
                self.unready(device);
                continue;
            };
            if dev.disk.qos.is_limited() && running.has_more() && self.must_wait(device) {
                return Turn::Waits;
            }
            let Some(running) = self.slot_queue(device, queue) else {
                return Turn::Idle;
            };
            match running.next_head() {
                Ok(Some(head)) => {
                    if let Some(dev) = self.devices[device].as_mut()
                        && dev.ready.len() > 1
                    {
                        dev.ready.rotate_left(1);
                    }
                    if let Some(cost) = self.take(device, queue, head) {
                        return Turn::Began(cost);
                    }
                }
                Ok(None) => {
                    if !std::mem::replace(&mut running.parked, true) {
                        self.parked.push((device, queue));
                    }
                    self.unready(device);
                }
                Err(error) => self.broke(device, queue, &error),
            }
        }
        Turn::Idle
    }

    /// Takes the first queue out of its device's line.
    fn unready(&mut self, device: usize) {
        if let Some(dev) = self.devices[device].as_mut()
            && let Some(queue) = dev.ready.pop_front()
            && let Some(running) = dev.queues[usize::from(queue)].as_mut()
        {
            running.ready = false;
        }
    }

    /// Begins the request at `head`, or its first piece; what that costs, or `None`
    /// if it broke the queue.
    fn take(&mut self, device: usize, queue: u16, head: u16) -> Option<u64> {
        let index = self.free_slot();
        let slot = &mut self.slots[index];
        (slot.device, slot.queue, slot.parent) = (device, queue, index);
        let dev = self.devices[device].as_mut()?;
        let running = dev.queues[usize::from(queue)].as_mut()?;
        if let Err(error) = running.load(head, &dev.disk, slot, &mut self.scratch) {
            self.free.push(index);
            self.broke(device, queue, &error);
            return None;
        }
        running.outstanding += 1;
        if dev.disk.qos.is_limited() {
            let now_ns = *self.now_ns.get_or_insert_with(crate::qos::now_ns);
            let direction = match slot.kind {
                Kind::Read(_) => Some(Direction::Read),
                Kind::Write(_) => Some(Direction::Write),
                _ => None,
            };
            if let Some(direction) = direction {
                let (offset, len) = (slot.offset(), slot.data_bytes);
                dev.disk.qos.charge(direction, offset, len, now_ns);
            }
            dev.since_ns = 0;
        }
        if slot.is_large() {
            slot.split();
            dev.cut = Some(index);
            return Some(self.cut(device, index));
        }
        Some(self.begin(index))
    }

    /// Begins the next piece of a request; what it costs.
    fn cut(&mut self, device: usize, request: usize) -> u64 {
        let index = self.free_slot();
        let Ok([whole, piece]) = self.slots.get_disjoint_mut([request, index]) else {
            return 0;
        };
        let Some(dev) = self.devices[device].as_mut() else {
            return 0;
        };
        // The rest of a request that has failed is not begun.
        if whole.outcome != STATUS_OK {
            dev.cut = None;
            self.free.push(index);
            self.piece_ended(request, STATUS_OK);
            return 0;
        }
        piece.parent = request;
        if whole.cut(piece) {
            whole.pieces -= 1;
            dev.cut = None;
        }
        self.begin(index)
    }

    fn free_slot(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(Box::default());
            self.slots.len() - 1
        })
    }

    /// Begins the piece in slot `index` as soon as it may; what it costs.
    fn begin(&mut self, index: usize) -> u64 {
        let slot = &mut self.slots[index];
        let (device, cost) = (slot.device, cost(slot.data_bytes));
        let Some(dev) = self.devices[device].as_mut() else {
            return cost;
        };
        match dev.admit(slot) {
            Some(window) => {
                let step = slot.begin(&dev.disk, &dev.bounce, window);
                self.drive(index, step);
                self.wake_layered(device);
            }
            None => dev.waiting = Some(index),
        }
        cost
    }

    /// The operation of the piece in slot `index` ended.
    pub(super) fn advanced(&mut self, index: usize, result: i32) {
        let slot = &mut self.slots[index];
        let device = slot.device;
        let cost = cost(slot.data_bytes);
        self.on_ring -= 1;
        self.on_ring_cost -= cost;
        if let Some(dev) = &mut self.devices[device] {
            dev.held -= cost;
            if std::mem::take(&mut dev.full) {
                self.turns[dev.lane as usize].resume(device);
            }
            let step = match &mut dev.head {
                None => Some(slot.advance(&dev.disk, &dev.bounce, result)),
                Some(head) => {
                    let turn = head.advance(index as u32, &mut slot.detour, result);
                    self.detour(index, turn)
                }
            };
            if let Some(step) = step {
                self.drive(index, step);
            }
            self.wake_waiting(device);
            self.wake_layered(device);
        }
    }

    /// Begins a waiting piece if it can; its device may go on then.
    pub(super) fn wake_waiting(&mut self, device: usize) {
        if let Some(dev) = self.devices[device].as_mut()
            && let Some(index) = dev.waiting
            && let Some(window) = dev.admit(&self.slots[index])
        {
            dev.waiting = None;
            let lane = dev.lane;
            let step = self.slots[index].begin(&dev.disk, &dev.bounce, window);
            self.turns[lane as usize].resume(device);
            self.drive(index, step);
        }
    }

    /// Runs a piece until it waits for the ring or is done.
    pub(super) fn drive(&mut self, index: usize, mut step: Step) {
        loop {
            let slot = &mut self.slots[index];
            let Some(dev) = &mut self.devices[slot.device] else {
                return;
            };
            if let (Step::Submit(op), Some(head)) = (&step, &mut dev.head) {
                let turn = head.begin(index as u32, &mut slot.detour, *op);
                match self.detour(index, turn) {
                    Some(next) => step = next,
                    None => return,
                }
                continue;
            }
            match (step, &dev.disk.backing) {
                (Step::Submit(op), Backing::File(file)) if file.inline => {
                    let result = run(&op, file);
                    step = slot.advance(&dev.disk, &dev.bounce, result);
                }
                (Step::Submit(op), Backing::File(file)) => {
                    let entry = entry(&op, file).user_data(Token::Io(index as u32).pack());
                    return self.send(index, entry);
                }
                (Step::Submit(_), Backing::Null | Backing::Layered(_)) => return,
                (Step::Done(status), _) => return self.complete(index, status),
            }
        }
    }

    /// Puts an operation of the piece in slot `index` on the ring.
    pub(super) fn send(&mut self, index: usize, entry: squeue::Entry) {
        let slot = &self.slots[index];
        let cost = cost(slot.data_bytes);
        self.on_ring += 1;
        self.on_ring_cost += cost;
        if let Some(dev) = &mut self.devices[slot.device] {
            dev.held += cost;
        }
        self.push(entry);
        if self.ring.submission().len() >= self.early {
            self.early = usize::MAX;
            // What this cannot submit the next wait does.
            let _ = self.ring.submit();
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
