//! Programs run as if a frame had come in.

use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, TestRunResult};

use super::failed;
use crate::fabric::Run;
use crate::fabric::error::FabricError;

/// `struct xdp_md` of linux/bpf.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct XdpMd {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

impl XdpMd {
    /// Of a frame that came in on an interface.
    pub(super) fn of(frame: &[u8], ifindex: u32) -> Self {
        Self {
            data_end: u32::try_from(frame.len()).unwrap_or(u32::MAX),
            ingress_ifindex: ifindex,
            ..Self::default()
        }
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        [
            self.data,
            self.data_end,
            self.data_meta,
            self.ingress_ifindex,
            self.rx_queue_index,
            self.egress_ifindex,
        ]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect()
    }
}

/// Size of `struct __sk_buff` of linux/bpf.h, and where it has the interface.
pub(super) const SK_BUFF_BYTES: usize = 192;
pub(super) const SK_BUFF_IFINDEX: usize = 40;

/// More than any frame grows by.
const GROWTH: usize = 256;

/// A test run (`BPF_PROG_TEST_RUN`): with `live_batch` the frames really go somewhere.
pub(super) fn run<P>(
    program: &P,
    name: &'static str,
    frame: &[u8],
    context: Option<&[u8]>,
    repeat: u32,
    live_batch: Option<u32>,
) -> Result<Run, FabricError>
where
    for<'a> P: TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    let mut out = vec![0; frame.len() + GROWTH];
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.ctx_in = context;
    options.repeat = repeat;
    match live_batch {
        Some(batch) => options.attrs = TestRunAttrs::new().xdp_live_frames(batch),
        None => options.data_out = Some(&mut out),
    }
    let result = program
        .test_run(options)
        .map_err(|error| failed(name)(error))?;
    out.truncate(usize::try_from(result.data_size_out).unwrap_or(0));
    Ok(Run {
        action: result.return_value,
        frame: out,
        mean_ns: u64::try_from(result.duration.as_nanos()).unwrap_or(u64::MAX),
    })
}
