use super::*;
use crate::memory;
use crate::virtio::queue::VirtQueue;
use crate::virtio::{Activation, Fault, Position, VirtioDevice};
use virtio_queue::QueueT;

const STOOD: Position = Position {
    next_avail: 7,
    next_used: 7,
};

/// A loaded disk with one queue at [`STOOD`], whose thread the test stands in for.
fn loaded() -> (tempfile::TempDir, BlockWorker) {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("disk")).unwrap();
    let spec = serde_json::json!({"id": "d", "listener": {"fd": 3}, "backend_uid": 0});
    let spec = serde_json::from_value(spec).unwrap();
    let kind = DiskKind {
        restored: true,
        ..Default::default()
    };
    let news = new_event().unwrap();
    let (mut device, mut worker) = BlockWorker::new(&spec, listener, kind, news).unwrap();
    let ram = memory::create(16).unwrap();
    let queue = virtio_queue::Queue::new(8).unwrap();
    let kick = Arc::new(new_event().unwrap());
    let mut queue = VirtQueue::new(queue, ram.clone(), kick, None);
    queue.set_position(STOOD);
    let fault = Fault::new("d".into(), Arc::default(), None, Arc::default());
    let activation = Activation {
        ram,
        features: 0,
        queues: vec![Some(queue)],
        fault,
    };
    device.activate(activation).unwrap();
    assert!(worker.heed_wishes());
    (dir, worker)
}

/// What a pause hears that comes while its predecessor's resume is not yet heeded.
fn pause_again(worker: &mut BlockWorker) -> Option<Positions> {
    worker.shared.wishes().rest = Some(Rest::End);
    let (answer, answered) = mpsc::sync_channel(1);
    worker.shared.wishes().rest = Some(Rest::Begin(answer));
    assert!(worker.heed_wishes());
    answered.recv().unwrap().unwrap()
}

#[test]
fn a_pause_on_the_heels_of_a_resume_still_finds_the_rings() {
    let (_dir, mut worker) = loaded();
    let stood = |position| Some(vec![Some(position)]);
    assert_eq!(pause_again(&mut worker), stood(STOOD));
    // Where the backend stopped them counts, not where they once were.
    let later = Position {
        next_avail: 9,
        next_used: 9,
    };
    worker.stopped_at = stood(later);
    assert_eq!(pause_again(&mut worker), stood(later));
    worker.shared.wishes().rest = Some(Rest::End);
    assert!(worker.heed_wishes());
    assert_eq!((worker.resting, worker.stopped_at), (false, None));
}
