//! The control socket's server, on the event thread
//! (protocol: [`ocs_vmm_spec::control`]). It hears root and the VMM's own user,
//! whatever mode the socket has.

use crate::error::{Result, host};
use crate::events::{Epoll, Handler, HandlerId};
use crate::inherit::{self, Passed};
use crate::irq::{borrow, new_event};
use crate::machine::Machine;
use crate::snapshot::worker::{Job, Jobs};
use ocs_vmm_spec::control::{MAX_DESCRIPTORS, MAX_LINE_BYTES, Reply, Request};
use ocs_vmm_spec::exit::ExitReason;
use rustix::event::epoll::EventFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use rustix::process::geteuid;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use vmm_sys_util::eventfd::EventFd;

/// More clients at a time are turned away.
const MAX_CLIENTS: usize = 8;
const SOURCE_LISTENER: u32 = 0;
const SOURCE_ANSWERED: u32 = 1;
const SOURCE_CHANGED: u32 = 2;
const FIRST_CLIENT: u32 = 3;

/// The listener and its clients.
pub struct ControlServer {
    machine: Arc<Machine>,
    epoll: Arc<Epoll>,
    handler: HandlerId,
    listener: UnixListener,
    /// Whom this process runs as: with root, whose requests are heard.
    own: u32,
    clients: BTreeMap<u32, Client>,
    next_client: u32,
    jobs: Jobs,
    /// Replies of jobs, by client; `answered` is signalled for each.
    replies: (Sender<Answer>, Receiver<Answer>),
    answered: Arc<EventFd>,
}

/// A job's reply, and the client that it is for.
type Answer = (u32, Reply);

struct Client {
    /// Waits for a job's reply: what it asks meanwhile is answered after that.
    busy: bool,
    /// Likewise, for another count of changes than this.
    seen: Option<u64>,
    stream: UnixStream,
    line: Vec<u8>,
    /// Came with the line.
    passed: Vec<OwnedFd>,
}

impl ControlServer {
    /// Serves `listener` on behalf of `handler`.
    pub fn new(
        machine: Arc<Machine>,
        jobs: Jobs,
        epoll: Arc<Epoll>,
        handler: HandlerId,
        listener: UnixListener,
    ) -> Result<Self> {
        let answered = Arc::new(new_event()?);
        epoll
            .add(handler, SOURCE_ANSWERED, borrow(&answered), EventFlags::IN)
            .map_err(host("watch for replies"))?;
        let changes = machine.devices.changes();
        epoll
            .add(handler, SOURCE_CHANGED, changes.as_ref(), EventFlags::IN)
            .map_err(host("watch for changes"))?;
        epoll
            .add(handler, SOURCE_LISTENER, &listener, EventFlags::IN)
            .map_err(host("watch the control socket"))?;
        Ok(Self {
            machine,
            epoll,
            handler,
            listener,
            own: geteuid().as_raw(),
            clients: BTreeMap::new(),
            next_client: FIRST_CLIENT,
            jobs,
            replies: channel(),
            answered,
        })
    }

    fn accept(&mut self) -> io::Result<()> {
        let (stream, _) = self.listener.accept()?;
        let peer = inherit::peer_uid(&stream)?;
        if !(peer == 0 || peer == self.own) || self.clients.len() >= MAX_CLIENTS {
            return Ok(());
        }
        stream.set_nonblocking(true)?;
        let source = self.next_client;
        self.next_client = self.next_client.checked_add(1).unwrap_or(FIRST_CLIENT);
        self.epoll
            .add(self.handler, source, &stream, EventFlags::IN)?;
        let client = Client {
            busy: false,
            seen: None,
            stream,
            line: Vec::new(),
            passed: Vec::new(),
        };
        self.clients.insert(source, client);
        Ok(())
    }

    /// Reads what there is and answers whole lines; false when the client is done.
    fn serve(&mut self, source: u32) -> io::Result<bool> {
        let Some(client) = self.clients.get_mut(&source) else {
            return Ok(false);
        };
        match client.receive() {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        }
        self.answer(source)
    }

    /// Answers whole lines until one needs a job; false when the client is done.
    fn answer(&mut self, source: u32) -> io::Result<bool> {
        let Some(client) = self.clients.get_mut(&source) else {
            return Ok(false);
        };
        while !client.busy
            && client.seen.is_none()
            && let Some(end) = client.line.iter().position(|byte| *byte == b'\n')
        {
            let line: Vec<u8> = client.line.drain(..=end).collect();
            let mut passed = Passed::from(std::mem::take(&mut client.passed));
            let reply = match serde_json::from_slice::<Request>(&line) {
                Ok(Request::AwaitChange { seen })
                    if seen == self.machine.devices.changes().count() =>
                {
                    client.seen = Some(seen);
                    continue;
                }
                Ok(request) => match job(&request, &mut passed) {
                    Ok(Some(job)) => {
                        client.busy = true;
                        let (replies, answered) =
                            (self.replies.0.clone(), Arc::clone(&self.answered));
                        let done = move |reply| {
                            // Nobody is left to answer at the machine's end.
                            let _ = replies.send((source, reply));
                            let _ = answered.write(1);
                        };
                        self.jobs.ask(job, Box::new(done));
                        continue;
                    }
                    Ok(None) => self.machine.handle(&request, passed),
                    Err(error) => Reply::Error {
                        message: error.to_string(),
                    },
                },
                Err(error) => Reply::Error {
                    message: format!("not a request that this VMM knows: {error}"),
                },
            };
            client.reply(&reply)?;
        }
        Ok(client.line.len() <= MAX_LINE_BYTES)
    }

    /// Tells those who wait for it that something changed.
    fn announce(&mut self) {
        self.machine.devices.changes().take_signal();
        let count = self.machine.devices.changes().count();
        let waiting = self.clients.iter_mut();
        let heard: Vec<u32> = waiting
            .filter_map(|(source, client)| {
                client.seen.take_if(|seen| *seen != count)?;
                Some(*source)
            })
            .collect();
        for source in heard {
            let status = self.machine.handle(&Request::Status, Passed::default());
            self.reply_later(source, &status);
        }
    }

    /// Gives a client the reply that it waited for, and goes on with what it asked meanwhile.
    fn reply_later(&mut self, source: u32, reply: &Reply) {
        let Some(client) = self.clients.get_mut(&source) else {
            return;
        };
        client.busy = false;
        let kept = client.reply(reply).is_ok() && self.answer(source).unwrap_or(false);
        if !kept {
            self.clients.remove(&source);
        }
    }

    /// Hands replies of jobs to those who asked.
    fn deliver(&mut self) {
        // Reading only clears the event.
        let _ = self.answered.read();
        while let Ok((source, reply)) = self.replies.1.try_recv() {
            self.reply_later(source, &reply);
            // Whoever asked has heard of it, or has gone.
            if let Reply::Migrated { .. } = reply {
                let message = "moved to another process".to_owned();
                self.machine.outcome.end(ExitReason::Migrated, message);
            }
        }
    }
}

/// What is not answered at once.
fn job(request: &Request, passed: &mut Passed) -> Result<Option<Job>> {
    Ok(Some(match request {
        Request::Pause => Job::Pause,
        Request::Resume => Job::Resume,
        Request::Migrate {
            socket,
            downtime_ms,
        } => Job::Migrate {
            socket: UnixStream::from(passed.take("socket", socket)?),
            downtime: Duration::from_millis((*downtime_ms).into()),
        },
        Request::Snapshot {
            state,
            memory,
            differential,
            track,
        } => Job::Snapshot {
            state: File::from(passed.take("state", state)?),
            memory: File::from(passed.take("memory", memory)?),
            differential: *differential,
            track: *track,
        },
        _ => return Ok(None),
    }))
}

impl Client {
    /// A client that does not read its answers loses the connection.
    fn reply(&mut self, reply: &Reply) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(reply)?;
        bytes.push(b'\n');
        self.stream.write_all(&bytes)
    }

    /// Takes in what has come: bytes of a line, descriptors that go with it.
    fn receive(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(&mut chunk)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.passed.extend(fds);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) || self.passed.len() > MAX_DESCRIPTORS {
            return Err(io::Error::other("too many descriptors"));
        }
        self.line.extend_from_slice(&chunk[..received.bytes]);
        Ok(received.bytes)
    }
}

impl Handler for ControlServer {
    fn ready(&mut self, source: u32, _flags: EventFlags) -> bool {
        if source == SOURCE_ANSWERED {
            self.deliver();
        } else if source == SOURCE_CHANGED {
            self.announce();
        } else if source == SOURCE_LISTENER {
            if let Err(error) = self.accept() {
                tracing::warn!(%error, "a control client was lost");
            }
        } else if !self.serve(source).unwrap_or(false) {
            // Closing the stream takes it out of the epoll set.
            self.clients.remove(&source);
        }
        true
    }
}
