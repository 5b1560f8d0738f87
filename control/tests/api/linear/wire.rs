//! The clients' way to a control that may be gone the next moment.

use crate::support::{Control, Credentials, escape, post_to, sign};
use std::io::Error;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

/// How long a control may take to come back.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where control serves, while it does; and the one clock of all that happens.
#[derive(Default)]
pub struct Wire {
    served: Mutex<Served>,
    serves: Condvar,
    clock: AtomicUsize,
}

#[derive(Default)]
struct Served {
    /// Counts controls.
    life: usize,
    at: Option<(String, Credentials)>,
}

impl Wire {
    /// The next moment.
    pub fn now(&self) -> usize {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// A control is there.
    pub fn serve(&self, control: &Control) {
        let host = control.ready["listen"].as_str().unwrap().to_owned();
        let mut served = self.served.lock().unwrap();
        served.life += 1;
        served.at = Some((host, control.credentials()));
        self.serves.notify_all();
    }

    /// It is about to be killed: nobody starts a call any more.
    pub fn cut(&self) {
        self.served.lock().unwrap().at = None;
    }

    /// Where a control serves that is not the `not`th, and its number.
    fn await_life_but(&self, not: usize) -> (usize, String, Credentials) {
        let served = self.served.lock().unwrap();
        let waits = |served: &mut Served| served.at.is_none() || served.life == not;
        let (served, late) = self
            .serves
            .wait_timeout_while(served, PATIENCE, waits)
            .unwrap();
        assert!(!late.timed_out(), "no answer, yet control was not killed");
        let (host, key) = served.at.clone().unwrap();
        (served.life, host, key)
    }

    /// Calls an action. None: the control that was asked is dead, another serves,
    /// and whether the call had its effect is not known.
    pub fn call(&self, action: &str, params: &[(&'static str, String)]) -> Option<(u16, String)> {
        let mut body = format!("Action={action}&Version=2016-11-15");
        for (name, value) in params {
            body += &format!("&{}={}", escape(name), escape(value));
        }
        let (life, host, key) = self.await_life_but(0);
        if let Ok(answer) = post(&host, &key, &body) {
            return Some(answer);
        }
        self.await_life_but(life);
        None
    }
}

fn post(host: &str, key: &Credentials, body: &str) -> Result<(u16, String), Error> {
    let format = time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
    let at = time::OffsetDateTime::now_utc().format(&format).unwrap();
    let headers = sign(
        &key.id,
        &key.secret,
        host,
        &at,
        "us-east-1/ec2",
        "/",
        body.as_bytes(),
    );
    post_to(host, &headers, body)
}
