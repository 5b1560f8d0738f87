//! Cooperative tasks on one processor, and the idle loop.
//!
//! ```text
//!  loop: poll net, every task, net again ──▶ anything moved, an answer due? again
//!                                      └──▶ arm the timer for the next deadline, halt
//! ```
//!
//! There are no wakers: after each interrupt every task looks whether what it waits for
//! has come, and each task that starts, goes on or ends causes another round, since what it does may be
//! what another waits for. There are at most some hundred tasks, and a look costs
//! nanoseconds.

use crate::global::Global;
use crate::{clock, console, lapic, ring0};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

/// A task.
pub type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Something that devices drive: polled before and after the tasks.
pub type Driver = Box<dyn FnMut() -> bool>;

struct State {
    /// Tasks that the next round takes in.
    new_tasks: Vec<Task>,
    new_drivers: Vec<Driver>,
    next_us: u64,
    poll_until_us: u64,
}

static STATE: Global<State> = Global::new(State {
    new_tasks: Vec::new(),
    new_drivers: Vec::new(),
    next_us: u64::MAX,
    poll_until_us: 0,
});

/// Asks that the loop runs again at `at_us`, or earlier.
pub fn wake_at(at_us: u64) {
    STATE.with(|state| state.next_us = state.next_us.min(at_us));
}

/// Asks that the loop does not halt for `us`: an answer is about to come.
pub fn poll_for(us: u64) {
    let until_us = clock::now_us() + us;
    STATE.with(|state| state.poll_until_us = state.poll_until_us.max(until_us));
}

/// Starts a task.
pub fn spawn(task: impl Future<Output = ()> + 'static) {
    STATE.with(|state| state.new_tasks.push(Box::pin(task)));
    wake_at(0);
}

/// Adds a driver: it moves what it can and returns whether tasks may see a change.
pub fn add_driver(driver: impl FnMut() -> bool + 'static) {
    STATE.with(|state| state.new_drivers.push(Box::new(driver)));
    wake_at(0);
}

/// Completes at `at_us`.
pub async fn sleep_until(at_us: u64) {
    poll_fn(|_| due(at_us)).await;
}

/// Lets all others run once.
pub async fn yield_now() {
    let mut first = true;
    poll_fn(|_| {
        if core::mem::take(&mut first) {
            wake_at(0);
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
    .await;
}

/// Ready from `at_us` on; registers the time otherwise.
pub fn due(at_us: u64) -> Poll<()> {
    if clock::now_us() >= at_us {
        wake_at(0);
        Poll::Ready(())
    } else {
        wake_at(at_us);
        Poll::Pending
    }
}

/// `future`'s output, or `None` at `at_us`.
pub async fn until<T>(at_us: u64, future: impl Future<Output = T>) -> Option<T> {
    let mut future = core::pin::pin!(future);
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => due(at_us).map(|()| None),
    })
    .await
}

/// Waits until `ready` gives a value; it is asked after everything that happens.
pub async fn wait<T>(mut ready: impl FnMut() -> Option<T>) -> T {
    let value = poll_fn(|_| ready().map_or(Poll::Pending, Poll::Ready)).await;
    wake_at(0);
    value
}

/// Runs for ever.
pub fn run() -> ! {
    let mut tasks: Vec<Task> = Vec::new();
    let mut drivers: Vec<Driver> = Vec::new();
    let mut context = Context::from_waker(Waker::noop());
    let mut armed = false;
    loop {
        let mut moved = STATE.with(|state| {
            state.next_us = u64::MAX;
            let new = !state.new_tasks.is_empty();
            tasks.append(&mut state.new_tasks);
            drivers.append(&mut state.new_drivers);
            new
        });
        for driver in &mut drivers {
            driver();
        }
        let count = tasks.len();
        tasks.retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
        moved |= tasks.len() < count;
        for driver in &mut drivers {
            moved |= driver();
        }
        console::poll();
        let (next_us, poll_until_us) = STATE.with(|state| (state.next_us, state.poll_until_us));
        let now_us = clock::now_us();
        if moved || next_us <= now_us || poll_until_us > now_us {
            continue;
        }
        if next_us != u64::MAX {
            lapic::arm(next_us - now_us);
            armed = true;
        } else if armed {
            lapic::disarm();
            armed = false;
        }
        ring0::idle();
    }
}
