//! The packet path: what the node asks of the Fabric.

use super::error::{Doing, EffectError};
use ocs_dataplane::fabric::{Fabric, Stack, StackConfig};
use ocs_dataplane::model::Policy;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What is asked of the packet path.
pub trait Network: Send + Sync {
    /// A tap that dies with its descriptor and passes nothing until a policy names it. Its guest
    /// may leave checksums and segmentation to others.
    fn create_tap(&self, name: &str) -> Result<(OwnedFd, u32), EffectError>;
    /// Whether [`Self::finish_tap`] changes anything, on this host.
    fn finishes_taps(&self) -> bool;
    /// The guest of a tap neither leaves work to others nor takes any, for as long as it lives.
    fn finish_tap(&self, ifindex: u32) -> Result<(), EffectError>;
    /// A network stack behind a port that passes nothing until a policy names it.
    fn create_stack(&self, name: &str, _config: &StackConfig) -> Result<Stack, EffectError> {
        let why = format!("{name}: there are no network stacks here");
        Err(EffectError::Permanent(why))
    }
    /// Takes one away.
    fn remove_stack(&self, _stack: Stack) -> Result<(), EffectError> {
        Ok(())
    }
    /// `policy` shall be what the packet path does.
    fn apply(&self, policy: &Policy) -> Result<(), EffectError>;
    /// Forgets taps that are gone.
    fn collect_garbage(&self) -> Result<(), EffectError>;
    /// Learns how the hosts are reached that the policy names; how many are not known.
    fn refresh(&self) -> Result<usize, EffectError> {
        Ok(0)
    }
}

impl Network for Fabric {
    fn create_tap(&self, name: &str) -> Result<(OwnedFd, u32), EffectError> {
        let tap = Fabric::create_offload_tap(self, name).doing(format_args!("tap {name}"))?;
        Ok((tap.fd, tap.ifindex))
    }

    fn finishes_taps(&self) -> bool {
        Fabric::finishes_taps(self)
    }

    fn finish_tap(&self, ifindex: u32) -> Result<(), EffectError> {
        Fabric::finish_tap(self, ifindex).doing(format_args!("XDP on tap {ifindex}"))
    }

    fn create_stack(&self, name: &str, config: &StackConfig) -> Result<Stack, EffectError> {
        Fabric::create_stack(self, name, config).doing(format_args!("network stack {name}"))
    }

    fn remove_stack(&self, stack: Stack) -> Result<(), EffectError> {
        Fabric::remove_stack(self, stack).doing("removing a network stack")
    }

    fn apply(&self, policy: &Policy) -> Result<(), EffectError> {
        Fabric::apply(self, policy).doing("policy")?;
        // One that fails is tried again soon, and fails no policy.
        if let Err(error) = self.refresh() {
            tracing::warn!(%error, "the way to other hosts");
        }
        Ok(())
    }

    fn collect_garbage(&self) -> Result<(), EffectError> {
        Fabric::collect_garbage(self).doing("removing pins of gone taps")?;
        Ok(())
    }

    fn refresh(&self) -> Result<usize, EffectError> {
        Fabric::refresh_hosts(self).doing("the way to other hosts")
    }
}

impl<N: Network + ?Sized> Network for Arc<N> {
    fn create_tap(&self, name: &str) -> Result<(OwnedFd, u32), EffectError> {
        (**self).create_tap(name)
    }

    fn finishes_taps(&self) -> bool {
        (**self).finishes_taps()
    }

    fn finish_tap(&self, ifindex: u32) -> Result<(), EffectError> {
        (**self).finish_tap(ifindex)
    }

    fn create_stack(&self, name: &str, config: &StackConfig) -> Result<Stack, EffectError> {
        (**self).create_stack(name, config)
    }

    fn remove_stack(&self, stack: Stack) -> Result<(), EffectError> {
        (**self).remove_stack(stack)
    }

    fn apply(&self, policy: &Policy) -> Result<(), EffectError> {
        (**self).apply(policy)
    }

    fn collect_garbage(&self) -> Result<(), EffectError> {
        (**self).collect_garbage()
    }

    fn refresh(&self) -> Result<usize, EffectError> {
        (**self).refresh()
    }
}

/// The packet path while the host goes down: it stays as it is until it is
/// destroyed whole, and nothing new is plugged in.
pub struct Frozen;

impl Network for Frozen {
    fn create_tap(&self, name: &str) -> Result<(OwnedFd, u32), EffectError> {
        Err(EffectError::Permanent(format!(
            "tap {name}: the host goes down"
        )))
    }

    fn finishes_taps(&self) -> bool {
        false
    }

    fn finish_tap(&self, _ifindex: u32) -> Result<(), EffectError> {
        Ok(())
    }

    fn apply(&self, _policy: &Policy) -> Result<(), EffectError> {
        Ok(())
    }

    fn collect_garbage(&self) -> Result<(), EffectError> {
        Ok(())
    }
}
