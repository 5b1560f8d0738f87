//! Starts the real binary with a PKI of its own, and signs calls to it.

pub mod fake_node;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use ring::{digest, hmac};
use serde_json::Value;
use std::io::{Error, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, SystemTime};

/// An access key.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// `AKIA…`.
    pub id: String,
    /// Its secret.
    pub secret: String,
}

/// A running `ocs-control`, killed when dropped.
pub struct Control {
    child: Child,
    /// Its folder.
    pub dir: PathBuf,
    /// Its ready file.
    pub ready: Value,
    /// Its bootstrap file.
    pub keys: Value,
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes `ca.pem`, `control.{pem,key}`, `node.{pem,key}` (common name `fake`).
pub fn make_pki(dir: &Path) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&ca_key).unwrap();
    std::fs::write(dir.join("ca.pem"), ca.pem()).unwrap();
    let issuer = Issuer::new(params, ca_key);
    for (file, name) in [("control", "control"), ("node", "fake"), ("other", "other")] {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(dir.join(format!("{file}.pem")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{file}.key")), key.serialize_pem()).unwrap();
    }
}

impl Control {
    /// Starts on a folder, new or used.
    pub fn start(dir: &Path) -> Self {
        std::fs::create_dir_all(dir.join("state")).unwrap();
        if !dir.join("ca.pem").exists() {
            make_pki(dir);
        }
        let _ = std::fs::remove_file(dir.join("ready"));
        let file = |name: &str| dir.join(name);
        let child = Command::new(env!("CARGO_BIN_EXE_ocs-control"))
            .arg("--state")
            .arg(file("state"))
            .args(["--regions", "us-east-1,eu-west-1", "--zones", "3"])
            .arg("--tls-ca")
            .arg(file("ca.pem"))
            .arg("--tls-cert")
            .arg(file("control.pem"))
            .arg("--tls-key")
            .arg(file("control.key"))
            .arg("--bootstrap-file")
            .arg(file("keys"))
            .arg("--ready-file")
            .arg(file("ready"))
            .arg("--images-manifest")
            .arg(file("images.json"))
            .args(["--public-addresses", "198.51.100.0/28"])
            // Tests ask as fast as the machine lets them.
            .args(["--request-rate", "0"])
            .arg("--admin-socket")
            .arg(file("admin"))
            .arg("--lock-file")
            .arg(file("lock"))
            .env("RUST_LOG", "warn")
            .spawn()
            .unwrap();
        let mut control = Self {
            child,
            dir: dir.to_owned(),
            ready: Value::Null,
            keys: Value::Null,
        };
        while !dir.join("ready").exists() {
            if let Some(status) = control.child.try_wait().unwrap() {
                panic!("ocs-control ended at start: {status}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let json =
            |name: &str| serde_json::from_slice(&std::fs::read(file(name)).unwrap()).unwrap();
        (control.ready, control.keys) = (json("ready"), json("keys"));
        control
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and its exit status.
    pub fn stop(mut self) -> std::process::ExitStatus {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        self.child.wait().unwrap()
    }

    /// Calls an action in a region; status and body.
    pub fn call_in(&self, region: &str, action: &str, params: &[(&str, &str)]) -> (u16, String) {
        let mut pairs = vec![("Action", action), ("Version", "2016-11-15")];
        pairs.extend(params);
        let body: Vec<String> = pairs
            .iter()
            .map(|(name, value)| format!("{}={}", escape(name), escape(value)))
            .collect();
        self.post(region, "ec2", &body.join("&"))
    }

    /// Calls an action in us-east-1; status and body.
    pub fn call(&self, action: &str, params: &[(&str, &str)]) -> (u16, String) {
        self.call_in("us-east-1", action, params)
    }

    /// Calls an action that has to succeed.
    pub fn ok(&self, action: &str, params: &[(&str, &str)]) -> String {
        let (status, body) = self.call(action, params);
        assert_eq!(status, 200, "{action} {params:?}: {body}");
        body
    }

    /// Calls an action that has to fail with a code.
    pub fn refused(&self, action: &str, params: &[(&str, &str)], code: &str) {
        let (status, body) = self.call(action, params);
        let found = text(&body, "Code").into_iter().next().unwrap_or_default();
        assert_eq!(
            (found.as_str(), status != 200),
            (code, true),
            "{action} {params:?}: {body}"
        );
    }

    /// The first account's access key.
    pub fn credentials(&self) -> Credentials {
        let text = |name: &str| self.keys[name].as_str().unwrap().to_owned();
        Credentials {
            id: text("access_key_id"),
            secret: text("secret_access_key"),
        }
    }

    /// Asks the operator's socket.
    pub fn operator(&self, request: &Value) -> Value {
        let mut stream = UnixStream::connect(self.dir.join("admin")).unwrap();
        stream.write_all(format!("{request}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    /// Makes another account.
    pub fn account(&self, limits: &str) -> Credentials {
        let made = self.operator(&serde_json::json!({"create_account": {"limits": limits}}));
        let text = |name: &str| made[name].as_str().unwrap().to_owned();
        Credentials {
            id: text("access_key_id"),
            secret: text("secret_access_key"),
        }
    }

    /// Posts a body, signed by the first account.
    pub fn post(&self, region: &str, service: &str, body: &str) -> (u16, String) {
        self.post_as(
            &self.credentials(),
            SystemTime::now(),
            region,
            service,
            body,
        )
    }

    /// Posts a body, signed with a key at a time.
    pub fn post_as(
        &self,
        key: &Credentials,
        at: SystemTime,
        region: &str,
        service: &str,
        body: &str,
    ) -> (u16, String) {
        let host = self.ready["listen"].as_str().unwrap();
        let format =
            time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
        let at = time::OffsetDateTime::from(at).format(&format).unwrap();
        let scope = format!("{region}/{service}");
        let headers = sign(
            &key.id,
            &key.secret,
            host,
            &at,
            &scope,
            "/",
            body.as_bytes(),
        );
        self.send(&headers, body)
    }

    /// Posts a body without a signature.
    pub fn post_unsigned(&self, body: &str) -> (u16, String) {
        self.send(&[], body)
    }

    fn send(&self, headers: &[(&'static str, String)], body: &str) -> (u16, String) {
        post_to(self.ready["listen"].as_str().unwrap(), headers, body).unwrap()
    }
}

/// Posts a body to a host; status and body of an answer that came whole.
pub fn post_to(
    host: &str,
    headers: &[(&'static str, String)],
    body: &str,
) -> Result<(u16, String), Error> {
    let mut stream = TcpStream::connect(host)?;
    let head: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    write!(
        stream,
        "POST / HTTP/1.1\r\nhost: {host}\r\n{head}content-type: application/x-www-form-urlencoded\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    whole(&answer).ok_or_else(|| Error::other(format!("cut short: {answer}")))
}

/// Status and body of an answer; none if its end is missing.
fn whole(answer: &str) -> Option<(u16, String)> {
    let (head, mut text) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let head = head.to_ascii_lowercase();
    if !head.contains("transfer-encoding: chunked") {
        let (_, length) = head.split_once("content-length: ")?;
        let length: usize = length.lines().next()?.trim().parse().ok()?;
        return (text.len() == length).then(|| (status, text.to_owned()));
    }
    let mut whole = String::new();
    loop {
        let (size, rest) = text.split_once("\r\n")?;
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some((status, whole));
        }
        whole.push_str(rest.get(..size)?);
        text = rest.get(size + 2..)?;
    }
}

/// Headers that sign a POST, made without the code under test.
pub fn sign(
    key: &str,
    secret: &str,
    host: &str,
    timestamp: &str,
    scope: &str,
    path: &str,
    body: &[u8],
) -> Vec<(&'static str, String)> {
    let scope = format!("{}/{scope}/aws4_request", &timestamp[..8]);
    let canonical = format!(
        "POST\n{path}\n\nhost:{host}\nx-amz-date:{timestamp}\n\nhost;x-amz-date\n{}",
        sha(body)
    );
    let signature = signature(secret, timestamp, &scope, &canonical);
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={key}/{scope}, SignedHeaders=host;x-amz-date, Signature={signature}"
    );
    vec![
        ("x-amz-date", timestamp.to_owned()),
        ("authorization", authorization),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Hexadecimal SHA-256.
pub fn sha(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// The signature of a canonical request, made without the code under test.
pub fn signature(secret: &str, timestamp: &str, scope: &str, canonical: &str) -> String {
    let mac = |key: &[u8], text: &str| {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
            .as_ref()
            .to_vec()
    };
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{timestamp}\n{scope}\n{}",
        sha(canonical.as_bytes())
    );
    let mut signing = format!("AWS4{secret}").into_bytes();
    for part in scope.split('/') {
        signing = mac(&signing, part);
    }
    hex(&mac(&signing, &to_sign))
}

/// Percent-encodes.
pub fn escape(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// The texts of all elements of a name.
pub fn text(xml: &str, element: &str) -> Vec<String> {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    xml.split(&open)
        .skip(1)
        .filter_map(|rest| rest.split_once(&close).map(|(text, _)| text.to_owned()))
        .collect()
}

/// Looks until it finds, for half a minute at most.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(found) = look() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{what}: not in half a minute");
}
