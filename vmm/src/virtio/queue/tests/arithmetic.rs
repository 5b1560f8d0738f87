//! Index arithmetic against a naive model: every short history, from every place where 16 bits
//! can wrap, for small queues.

use super::*;
use std::collections::VecDeque;

/// What either side does.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The driver offers a free descriptor, and wants to hear of the next that comes back.
    Offer,
    /// The device takes one.
    Pop,
    /// The device takes one and puts it back.
    Peek,
    /// The device gives back what it has longest.
    PushOldest,
    /// The device gives back what it took last.
    PushNewest,
    /// The device tells the driver, if it wants to know.
    Notify,
    /// The device wants kicks.
    Enable,
    /// The device wants none.
    Disable,
}

const STEPS: [Step; 8] = [
    Step::Offer,
    Step::Pop,
    Step::Peek,
    Step::PushOldest,
    Step::PushNewest,
    Step::Notify,
    Step::Enable,
    Step::Disable,
];

/// The queue without indices that wrap.
struct Model {
    size: u16,
    start: u16,
    free: VecDeque<u16>,
    offered: VecDeque<u16>,
    taken: VecDeque<u16>,
    /// Counted from `start`, unbounded.
    offers: u64,
    pops: u64,
    pushes: u64,
    told: u64,
    /// The driver wants to hear when this one comes back.
    event: u64,
    event_idx: bool,
}

struct Bed {
    ram: GuestRam,
    call: EventFd,
    kick: Arc<EventFd>,
}

impl Bed {
    fn new() -> Self {
        Self {
            ram: memory::create(16).unwrap(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
            kick: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
        }
    }

    /// A queue of `size` whose indices all stand at `start`.
    fn begin(&self, size: u16, start: u16, event_idx: bool) -> (VirtQueue, Model) {
        let mut queue = rings(size);
        queue.set_event_idx(event_idx);
        for index in 0..size {
            let at = GuestAddress(TABLE + u64::from(index) * 16);
            let descriptor = Descriptor::new(0x8000, 1, F_WRITE, 0);
            self.ram.write_obj(descriptor, at).unwrap();
        }
        for ring in [AVAIL, USED] {
            self.ram.write_obj(0u16, GuestAddress(ring)).unwrap();
            self.ram.write_obj(start, GuestAddress(ring + 2)).unwrap();
        }
        let call = self.call.try_clone().unwrap();
        let mut queue = VirtQueue::new(queue, self.ram.clone(), Arc::clone(&self.kick), Some(call));
        queue.set_position(Position {
            next_avail: start,
            next_used: start,
        });
        let model = Model {
            size,
            start,
            free: (0..size).collect(),
            offered: VecDeque::new(),
            taken: VecDeque::new(),
            offers: 0,
            pops: 0,
            pushes: 0,
            told: 0,
            event: 0,
            event_idx,
        };
        self.set_event(&model);
        (queue, model)
    }

    fn half(&self, at: u64) -> u16 {
        self.ram.read_obj(GuestAddress(at)).unwrap()
    }

    fn set_half(&self, at: u64, value: u16) {
        self.ram.write_obj(value, GuestAddress(at)).unwrap();
    }

    /// `used_event`, behind the available ring.
    fn set_event(&self, model: &Model) {
        let at = AVAIL + 4 + 2 * u64::from(model.size);
        self.set_half(at, model.index(model.event));
    }

    fn take(&self, queue: &mut VirtQueue, model: &Model) -> Option<u16> {
        let head = queue.pop(&mut Buffers::default()).unwrap();
        assert_eq!(head, model.offered.front().copied());
        head
    }

    fn step(&self, step: Step, queue: &mut VirtQueue, model: &mut Model) {
        match step {
            Step::Offer => {
                let Some(head) = model.free.pop_front() else {
                    return;
                };
                let slot = u64::from(model.index(model.offers) % model.size);
                self.set_half(AVAIL + 4 + 2 * slot, head);
                model.offers += 1;
                self.set_half(AVAIL + 2, model.index(model.offers));
                model.offered.push_back(head);
                model.event = model.pushes;
                self.set_event(model);
            }
            Step::Pop => {
                if let Some(head) = self.take(queue, model) {
                    model.offered.pop_front();
                    model.taken.push_back(head);
                    model.pops += 1;
                }
            }
            Step::Peek => {
                if self.take(queue, model).is_some() {
                    queue.undo_pop();
                }
            }
            Step::PushOldest => self.push(model.taken.pop_front(), queue, model),
            Step::PushNewest => self.push(model.taken.pop_back(), queue, model),
            Step::Notify => {
                // Somebody waits for one of those given back since it was last told.
                let wanted = !model.event_idx || (model.told..model.pushes).contains(&model.event);
                assert_eq!(queue.notify().unwrap(), wanted);
                assert_eq!(self.call.read().is_ok(), wanted);
                model.told = model.pushes;
            }
            Step::Enable => {
                assert_eq!(queue.enable_kicks().unwrap(), !model.offered.is_empty());
                if model.event_idx {
                    // `avail_event`, behind the used ring.
                    let at = USED + 4 + 8 * u64::from(model.size);
                    assert_eq!(self.half(at), model.index(model.pops));
                } else {
                    assert_eq!(self.half(USED), 0);
                }
            }
            Step::Disable => {
                queue.disable_kicks().unwrap();
                if !model.event_idx {
                    assert_eq!(self.half(USED), 1, "VIRTQ_USED_F_NO_NOTIFY");
                }
            }
        }
        assert_eq!(self.half(USED + 2), model.index(model.pushes));
        let position = queue.position();
        assert_eq!(position.next_avail, model.index(model.pops));
        assert_eq!(position.next_used, model.index(model.pushes));
    }

    fn push(&self, head: Option<u16>, queue: &mut VirtQueue, model: &mut Model) {
        let Some(head) = head else {
            return;
        };
        queue.push(head, 7).unwrap();
        let slot = u64::from(model.index(model.pushes) % model.size);
        let entry: (u32, u32) = (
            self.ram
                .read_obj(GuestAddress(USED + 4 + 8 * slot))
                .unwrap(),
            self.ram
                .read_obj(GuestAddress(USED + 8 + 8 * slot))
                .unwrap(),
        );
        assert_eq!(entry, (u32::from(head), 7));
        model.pushes += 1;
        model.free.push_back(head);
    }
}

impl Model {
    /// A count as the 16 bits that the rings hold.
    fn index(&self, count: u64) -> u16 {
        (u64::from(self.start) + count) as u16
    }
}

#[test]
fn every_short_history_agrees_with_a_model_that_never_wraps() {
    // `cargo xtask test --long` goes further.
    let length = match std::env::var_os("OCS_LONG") {
        Some(_) => 7,
        None => 5,
    };
    let bed = Bed::new();
    let histories = STEPS.len().pow(length);
    for (size, event_idx) in [(1, true), (2, false), (2, true)] {
        for start in [0, 0u16.wrapping_sub(2), 0u16.wrapping_sub(1)] {
            for history in 0..histories {
                let (mut queue, mut model) = bed.begin(size, start, event_idx);
                let _ = bed.call.read();
                let mut rest = history;
                for _ in 0..length {
                    let step = STEPS[rest % STEPS.len()];
                    bed.step(step, &mut queue, &mut model);
                    rest /= STEPS.len();
                }
            }
        }
    }
}

#[test]
fn a_long_life_agrees_too_all_around_the_indices() {
    let bed = Bed::new();
    for size in [4u16, 256] {
        let (mut queue, mut model) = bed.begin(size, 1000, true);
        let mut seed = 1u64;
        // Enough for both indices to wrap more than once.
        for _ in 0..900_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let step = STEPS[(seed >> 33) as usize % STEPS.len()];
            bed.step(step, &mut queue, &mut model);
        }
        assert!(
            model.pushes > 1 << 16 && model.offers > 1 << 16,
            "{}",
            model.pushes
        );
    }
}
