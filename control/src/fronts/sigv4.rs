//! AWS Signature Version 4, verified: in a header, or in the query string
//! (presigned). Source: IAM user guide, "Create a signed AWS API request".
//!
//! Every request must sign its host, its body and all its `x-amz-` headers. A
//! repeated signature is no error: its date has one-second grain.

use crate::wire::ApiError;
use http::HeaderMap;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use ring::{digest, hmac};

/// Largest difference between the caller's clock and ours.
pub const MAX_SKEW_S: i64 = 300;
/// Longest life of a presigned request.
const MAX_EXPIRES_S: i64 = 604_800;
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// What RFC 3986 leaves unreserved.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A request as it came, with the parts that a signature covers.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// `GET` or `POST`.
    pub method: &'a str,
    /// Path, undecoded.
    pub path: &'a str,
    /// Query string, undecoded.
    pub query: &'a str,
    /// Headers.
    pub headers: &'a HeaderMap,
    /// HTTP/2's authority, which stands for the host header.
    pub authority: Option<&'a str>,
    /// What the body hash is taken of.
    pub body: &'a [u8],
}

/// Who a verified request is from, and for which service and region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Account id.
    pub account: String,
    /// Access key id.
    pub access_key: String,
    /// Region of the credential scope.
    pub region: String,
    /// `ec2` or `sts`.
    pub service: String,
}

/// What a request says of its signature.
#[derive(Debug)]
struct Claim {
    access_key: String,
    date: String,
    region: String,
    service: String,
    signed_headers: Vec<String>,
    signature: Vec<u8>,
    timestamp: String,
    expires_s: Option<i64>,
}

/// Hexadecimal SHA-256.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits
        .len()
        .is_multiple_of(2)
        .then(|| digits.chunks(2).map(pair).collect())?
}

/// Verifies a request. `lookup` gives an access key's account and secret.
///
/// # Errors
/// EC2's codes, or STS's where the credential scope names `sts`.
pub fn verify(
    request: &Request<'_>,
    now_s: i64,
    lookup: impl Fn(&str) -> Option<(String, String)>,
) -> Result<Identity, ApiError> {
    let claim = claim(request)?;
    let sts = claim.service == "sts";
    let refused = |sts_code: &'static str| {
        ApiError::new(
            if sts { sts_code } else { "AuthFailure" },
            "AWS was not able to validate the provided access credentials",
        )
    };
    if request.headers.contains_key("x-amz-security-token") {
        return Err(refused("InvalidClientTokenId"));
    }
    let (account, secret) =
        lookup(&claim.access_key).ok_or_else(|| refused("InvalidClientTokenId"))?;
    check_time(&claim, now_s)?;
    check_headers(&claim, request)?;
    let scope = format!(
        "{}/{}/{}/aws4_request",
        claim.date, claim.region, claim.service
    );
    let canonical = canonical(&claim, request)?;
    let to_sign = format!(
        "{ALGORITHM}\n{}\n{scope}\n{}",
        claim.timestamp,
        sha256_hex(canonical.as_bytes())
    );
    let mut key = hmac::Key::new(hmac::HMAC_SHA256, format!("AWS4{secret}").as_bytes());
    for part in [&claim.date, &claim.region, &claim.service, "aws4_request"] {
        key = hmac::Key::new(
            hmac::HMAC_SHA256,
            hmac::sign(&key, part.as_bytes()).as_ref(),
        );
    }
    // Constant in time.
    hmac::verify(&key, to_sign.as_bytes(), &claim.signature)
        .map_err(|_| refused("SignatureDoesNotMatch"))?;
    Ok(Identity {
        account,
        access_key: claim.access_key,
        region: claim.region,
        service: claim.service,
    })
}

fn incomplete(what: &str) -> ApiError {
    ApiError::new(
        "IncompleteSignature",
        format!("The request signature is incomplete: {what}."),
    )
}

fn claim(request: &Request<'_>) -> Result<Claim, ApiError> {
    if let Some(header) = request.headers.get("authorization") {
        let text = header
            .to_str()
            .map_err(|_| incomplete("Authorization is not ASCII"))?;
        let fields = text
            .strip_prefix(ALGORITHM)
            .ok_or_else(|| incomplete("Authorization does not name AWS4-HMAC-SHA256"))?;
        let field = |name: &str| {
            fields
                .split(',')
                .find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='))
                .ok_or_else(|| incomplete(&format!("Authorization has no {name}")))
        };
        let timestamp = header_text(request.headers, "x-amz-date")
            .ok_or_else(|| incomplete("there is no X-Amz-Date"))?;
        return build(
            field("Credential")?,
            field("SignedHeaders")?,
            field("Signature")?,
            timestamp,
            None,
        );
    }
    let parameter = |name: &str| {
        request.query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            (key == name).then(|| percent_decode_str(value).decode_utf8_lossy().into_owned())
        })
    };
    let required =
        |name: &str| parameter(name).ok_or_else(|| incomplete(&format!("there is no {name}")));
    match parameter("X-Amz-Algorithm") {
        None => Err(ApiError::new(
            "MissingAuthenticationToken",
            "Request is missing Authentication Token",
        )),
        Some(algorithm) if algorithm != ALGORITHM => {
            Err(incomplete("X-Amz-Algorithm is not AWS4-HMAC-SHA256"))
        }
        Some(_) => {
            let expires_s = required("X-Amz-Expires")?
                .parse()
                .ok()
                .filter(|expires| (1..=MAX_EXPIRES_S).contains(expires))
                .ok_or_else(|| incomplete("X-Amz-Expires is not from 1 to 604800"))?;
            build(
                &required("X-Amz-Credential")?,
                &required("X-Amz-SignedHeaders")?,
                &required("X-Amz-Signature")?,
                required("X-Amz-Date")?,
                Some(expires_s),
            )
        }
    }
}

fn build(
    credential: &str,
    signed_headers: &str,
    signature: &str,
    timestamp: String,
    expires_s: Option<i64>,
) -> Result<Claim, ApiError> {
    let parts: Vec<&str> = credential.split('/').collect();
    let [access_key, date, region, service, "aws4_request"] = parts.as_slice() else {
        return Err(incomplete(
            "Credential is not KEY/DATE/REGION/SERVICE/aws4_request",
        ));
    };
    Ok(Claim {
        access_key: (*access_key).to_owned(),
        date: (*date).to_owned(),
        region: (*region).to_owned(),
        service: (*service).to_owned(),
        signed_headers: signed_headers.split(';').map(str::to_owned).collect(),
        signature: unhex(signature).ok_or_else(|| incomplete("Signature is not hexadecimal"))?,
        timestamp,
        expires_s,
    })
}

fn check_time(claim: &Claim, now_s: i64) -> Result<(), ApiError> {
    let format = time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
    let at_s = time::PrimitiveDateTime::parse(&claim.timestamp, &format)
        .map_err(|_| incomplete("X-Amz-Date is not of the form YYYYMMDDTHHMMSSZ"))?
        .assume_utc()
        .unix_timestamp();
    if !claim.timestamp.starts_with(&claim.date) {
        return Err(ApiError::new(
            if claim.service == "sts" {
                "SignatureDoesNotMatch"
            } else {
                "AuthFailure"
            },
            format!(
                "Date in Credential scope does not match {}",
                claim.timestamp
            ),
        ));
    }
    let age_s = now_s - at_s;
    if age_s < -MAX_SKEW_S || age_s > claim.expires_s.unwrap_or(MAX_SKEW_S) {
        return Err(ApiError::new("RequestExpired", "Request has expired."));
    }
    Ok(())
}

fn check_headers(claim: &Claim, request: &Request<'_>) -> Result<(), ApiError> {
    let signed = |name: &str| claim.signed_headers.iter().any(|signed| signed == name);
    if !signed("host") {
        return Err(incomplete("the host header is not signed"));
    }
    match request
        .headers
        .keys()
        .find(|n| n.as_str().starts_with("x-amz-") && !signed(n.as_str()))
    {
        Some(name) => Err(incomplete(&format!("the header {name} is not signed"))),
        None => Ok(()),
    }
}

fn header_text(headers: &HeaderMap, name: &str) -> Option<String> {
    let values: Vec<String> = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .map(|value| value.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    (!values.is_empty()).then(|| values.join(","))
}

fn canonical(claim: &Claim, request: &Request<'_>) -> Result<String, ApiError> {
    let mut text = format!(
        "{}\n{}\n{}\n",
        request.method,
        request.path,
        query(request.query)
    );
    for name in &claim.signed_headers {
        let value = match (name.as_str(), request.authority) {
            ("host", Some(authority)) => Some(authority.to_owned()),
            _ => header_text(request.headers, name),
        };
        let value = value.ok_or_else(|| incomplete(&format!("there is no header {name}")))?;
        text.push_str(&format!("{name}:{value}\n"));
    }
    text.push_str(&format!(
        "\n{}\n{}",
        claim.signed_headers.join(";"),
        sha256_hex(request.body)
    ));
    Ok(text)
}

/// Parameters decoded, encoded in the one canonical way, and sorted.
fn query(raw: &str) -> String {
    let encode = |text: &str| {
        let bytes = percent_decode_str(text).decode_utf8_lossy();
        utf8_percent_encode(&bytes, ESCAPED).to_string()
    };
    let mut pairs: Vec<(String, String)> = raw
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .filter(|(name, _)| *name != "X-Amz-Signature")
        .map(|(name, value)| (encode(name), encode(value)))
        .collect();
    pairs.sort();
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.join("&")
}

#[cfg(test)]
mod tests;
