//! The one client of both sides: EC2 Query over keep-alive HTTP/1.1, signed with
//! AWS Signature Version 4 (IAM user guide, "Create a signed AWS API request").

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use memchr::memmem;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ring::{digest, hmac};
use time::OffsetDateTime;
use time::macros::format_description;

/// The region of every call.
pub const REGION: &str = "us-east-1";
const VERSION: &str = "2016-11-15";
const FORM: &str = "application/x-www-form-urlencoded";
/// As much of a refusal as is quoted.
const QUOTED_BYTES: usize = 500;
/// What RFC 3986 leaves unreserved.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Credentials of an account.
#[derive(Clone)]
pub struct Credentials {
    /// `AKIA…`.
    pub access_key: String,
    /// What it signs with.
    pub secret_key: String,
}

/// A client of one server; its connections are as many as its concurrent calls.
pub struct Client {
    http: legacy::Client<HttpConnector, Full<Bytes>>,
    host: String,
    credentials: Credentials,
}

impl Client {
    /// A client of the server at `host` (`ADDRESS:PORT`).
    pub fn new(host: impl Into<String>, credentials: Credentials) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self {
            http: legacy::Client::builder(TokioExecutor::new()).build(connector),
            host: host.into(),
            credentials,
        }
    }

    /// Calls an action; anything but 200 is an error.
    pub async fn call(&self, action: &str, parameters: &[(&str, &str)]) -> Result<Bytes> {
        let body = form(action, parameters);
        let date = OffsetDateTime::now_utc().format(format_description!(
            "[year][month][day]T[hour][minute][second]Z"
        ))?;
        let signed = authorization(&self.credentials, &self.host, &date, &body);
        let request = hyper::Request::post(format!("http://{}/", self.host))
            .header("content-type", FORM)
            .header("x-amz-date", date)
            .header("authorization", signed)
            .body(Full::from(body))?;
        let answer = self
            .http
            .request(request)
            .await
            .with_context(|| format!("{action} at {}", self.host))?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        ensure!(
            status == 200,
            "{action} at {}: {status}: {}",
            self.host,
            String::from_utf8_lossy(&body[..body.len().min(QUOTED_BYTES)])
        );
        Ok(body)
    }
}

/// Occurrences of `<instanceId>`, one an instance in RunInstances and DescribeInstances.
pub fn count_instances(body: &[u8]) -> usize {
    memmem::find_iter(body, b"<instanceId>").count()
}

/// The instances of an answer.
pub fn instance_ids(body: &[u8]) -> Result<Vec<String>> {
    let text = std::str::from_utf8(body).context("the answer is not UTF-8")?;
    Ok(text
        .split("<instanceId>")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once('<')?.0.to_owned()))
        .collect())
}

fn form(action: &str, parameters: &[(&str, &str)]) -> String {
    let mut body = format!("Action={action}&Version={VERSION}");
    for (name, value) in parameters {
        body.push('&');
        body.extend(utf8_percent_encode(name, ESCAPED));
        body.push('=');
        body.extend(utf8_percent_encode(value, ESCAPED));
    }
    body
}

/// The value of `Authorization` for a POST of `body` to `/`.
fn authorization(credentials: &Credentials, host: &str, date: &str, body: &str) -> String {
    let headers = "content-type;host;x-amz-date";
    let canonical = format!(
        "POST\n/\n\ncontent-type:{FORM}\nhost:{host}\nx-amz-date:{date}\n\n{headers}\n{}",
        sha256_hex(body)
    );
    let day = date.get(..8).unwrap_or_default();
    let scope = format!("{day}/{REGION}/ec2/aws4_request");
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{date}\n{scope}\n{}",
        sha256_hex(&canonical)
    );
    let secret = format!("AWS4{}", credentials.secret_key);
    let mut key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    for part in scope.split('/') {
        key = hmac::Key::new(
            hmac::HMAC_SHA256,
            hmac::sign(&key, part.as_bytes()).as_ref(),
        );
    }
    format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={headers}, Signature={}",
        credentials.access_key,
        hex(hmac::sign(&key, to_sign.as_bytes()).as_ref())
    )
}

fn sha256_hex(text: &str) -> String {
    hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference: botocore 1.44.5, `SigV4Auth` with these credentials and date.
    #[test]
    fn a_signature_is_botocores() {
        let credentials = Credentials {
            access_key: "AKIDEXAMPLE".to_owned(),
            secret_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned(),
        };
        let body = form("DescribeInstances", &[("InstanceId.1", "i-1 2")]);
        let signed = authorization(&credentials, "127.0.0.1:80", "20260102T030405Z", &body);
        assert_eq!(
            signed.rsplit_once('=').unwrap().1,
            "f52e668383bcd6f7d1d2e62ed980657b7d790da25e85ea250591b00a79b11f04",
            "{body}"
        );
    }

    #[test]
    fn instances_are_counted_and_named() {
        let body = b"<a><instanceId>i-1</instanceId><b/><instanceId>i-2</instanceId></a>";
        assert_eq!(count_instances(body), 2);
        assert_eq!(instance_ids(body).unwrap(), ["i-1", "i-2"]);
    }
}
