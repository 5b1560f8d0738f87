//! Runs what a volume's layers ask for: the seam between slots and [`crate::cow`].

use super::op::{entry, run};
use super::slot::Step;
use super::token::Token;
use super::worker::Worker;
use crate::cow::head::Turn;

impl Worker {
    /// Runs turns of the request in slot `index` until it waits (`None`), or until its
    /// operation ended: then its next step.
    pub(super) fn detour(&mut self, index: usize, mut turn: Turn) -> Option<Step> {
        loop {
            let slot = &mut self.slots[index];
            let dev = self.devices[slot.device].as_mut()?;
            let head = dev.head.as_mut()?;
            match turn {
                Turn::Wait => return None,
                Turn::Done(result) => return Some(slot.advance(&dev.disk, &dev.bounce, result)),
                Turn::Submit(target, op) => {
                    let file = head.file(target);
                    if !file.inline {
                        let entry = entry(&op, file).user_data(Token::Io(index as u32).pack());
                        self.send(index, entry);
                        return None;
                    }
                    let result = run(&op, file);
                    turn = head.advance(index as u32, &mut slot.detour, result);
                }
            }
        }
    }

    /// Goes on with requests of `device` for which what they waited for came.
    pub(super) fn wake_layered(&mut self, device: usize) {
        while let Some(head) = self.devices[device].as_mut().and_then(|d| d.head.as_mut())
            && let Some((request, wake)) = head.woken()
        {
            let index = request as usize;
            let turn = head.wake(request, &mut self.slots[index].detour, wake);
            if let Some(step) = self.detour(index, turn) {
                self.drive(index, step);
                self.wake_waiting(device);
            }
        }
    }
}
