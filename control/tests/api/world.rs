//! A control and a fake node together.

use crate::support::fake_node::FakeNode;
use crate::support::{Control, text, until};
use ocs_node_api::Phase;

/// Control, a fake node, and what a test does with them.
pub struct World {
    _dir: tempfile::TempDir,
    /// Where the fake node runs.
    pub runtime: tokio::runtime::Runtime,
    /// The real control.
    pub control: Control,
    /// The fake node.
    pub node: FakeNode,
}

/// A world whose node has so many CPUs.
pub fn world(vcpus: u32) -> World {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(dir.path());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let node = connect(&runtime, &control, vcpus);
    World {
        _dir: dir,
        runtime,
        control,
        node,
    }
}

/// Connects a fake node of so many CPUs.
pub fn connect(runtime: &tokio::runtime::Runtime, control: &Control, vcpus: u32) -> FakeNode {
    let address = control.ready["node_listen"].as_str().unwrap();
    let node = runtime.block_on(FakeNode::connect(address, &control.dir, vcpus, 1 << 30));
    // The node's row is there once an instance fits.
    let image = ami(control);
    until("capacity", || {
        let params = [
            ("ImageId", image.as_str()),
            ("MinCount", "1"),
            ("MaxCount", "1"),
            ("DryRun", "true"),
        ];
        (control.call("RunInstances", &params).0 == 412).then_some(())
    });
    node
}

/// The probe image.
pub fn ami(control: &Control) -> String {
    control.ready["images"]["us-east-1"]["ocs-probe"]
        .as_str()
        .unwrap()
        .to_owned()
}

impl World {
    /// Launches, and gives the ids.
    pub fn run(&self, count: &str, more: &[(&str, &str)]) -> Vec<String> {
        let image = ami(&self.control);
        let mut params = vec![
            ("ImageId", image.as_str()),
            ("MinCount", count),
            ("MaxCount", count),
        ];
        params.extend(more);
        text(&self.control.ok("RunInstances", &params), "instanceId")
            .into_iter()
            .filter(|id| id.starts_with("i-"))
            .collect()
    }

    /// An instance's state.
    pub fn state(&self, id: &str) -> String {
        let body = self
            .control
            .ok("DescribeInstances", &[("InstanceId.1", id)]);
        let state = body.split("<instanceState>").nth(1).unwrap();
        text(state, "name").remove(0)
    }

    /// Waits until an instance is in a state.
    pub fn await_state(&self, id: &str, state: &str) {
        until(&format!("{id} {state}"), || {
            (self.state(id) == state).then_some(())
        });
    }

    /// Has the node report an instance.
    pub fn say(&self, id: &str, phase: Phase, reason: &str) {
        let generation = self.node.seen.lock().unwrap().instances[id].generation;
        self.runtime
            .block_on(self.node.say(id, generation, phase, reason));
    }

    /// An instance's StateReason code.
    pub fn reason(&self, id: &str) -> String {
        let body = self
            .control
            .ok("DescribeInstances", &[("InstanceId.1", id)]);
        text(body.split("<stateReason>").nth(1).unwrap(), "code").remove(0)
    }

    /// Free addresses of each subnet.
    pub fn free_addresses(&self) -> Vec<String> {
        text(
            &self.control.ok("DescribeSubnets", &[]),
            "availableIpAddressCount",
        )
    }
}
