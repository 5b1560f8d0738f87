//! The XML encoder: a [`Shown`] to what EC2 and STS answer.

use super::shapes::{Instant, Model, Shape, ShapeId};
use super::{ApiError, Shown, Tree as _, instant};

const PROLOGUE: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";

/// EC2's answer: `<ActionResponse><requestId/>members…</ActionResponse>`. An
/// action without an output shape answers `<return>true</return>`.
pub fn ec2(model: &Model, action: &str, value: &Shown, request_id: &str) -> String {
    let mut out = String::with_capacity(1024);
    out.push_str(PROLOGUE);
    open(
        &mut out,
        &format!("{action}Response xmlns=\"{}/\"", model.xml_namespace),
    );
    text_element(&mut out, "requestId", request_id);
    match model
        .operations
        .get(action)
        .and_then(|operation| operation.output)
    {
        Some(shape) => members(&mut out, model, shape, value),
        None => text_element(&mut out, "return", "true"),
    }
    close(&mut out, &format!("{action}Response"));
    out
}

/// STS's answer: the `query` protocol's wrapper.
pub fn sts(model: &Model, action: &str, value: &Shown, request_id: &str) -> String {
    let mut out = String::from(PROLOGUE);
    open(
        &mut out,
        &format!("{action}Response xmlns=\"{}\"", model.xml_namespace),
    );
    open(&mut out, &format!("{action}Result"));
    if let Some(shape) = model
        .operations
        .get(action)
        .and_then(|operation| operation.output)
    {
        members(&mut out, model, shape, value);
    }
    close(&mut out, &format!("{action}Result"));
    open(&mut out, "ResponseMetadata");
    text_element(&mut out, "RequestId", request_id);
    close(&mut out, "ResponseMetadata");
    close(&mut out, &format!("{action}Response"));
    out
}

/// EC2's error document.
pub fn ec2_error(error: &ApiError, request_id: &str) -> String {
    let mut out = String::from(PROLOGUE);
    out.push_str("<Response><Errors><Error>");
    text_element(&mut out, "Code", &error.code);
    text_element(&mut out, "Message", &error.message);
    out.push_str("</Error></Errors>");
    text_element(&mut out, "RequestID", request_id);
    out.push_str("</Response>");
    out
}

/// STS's error document.
pub fn sts_error(model: &Model, error: &ApiError, request_id: &str) -> String {
    let mut out = String::from(PROLOGUE);
    open(
        &mut out,
        &format!("ErrorResponse xmlns=\"{}\"", model.xml_namespace),
    );
    out.push_str("<Error>");
    text_element(
        &mut out,
        "Type",
        if error.status < 500 {
            "Sender"
        } else {
            "Receiver"
        },
    );
    text_element(&mut out, "Code", &error.code);
    text_element(&mut out, "Message", &error.message);
    out.push_str("</Error>");
    text_element(&mut out, "RequestId", request_id);
    close(&mut out, "ErrorResponse");
    out
}

/// Members in the model's order, which is nearly always the value's: each is looked for
/// from where the last one was found.
fn members(out: &mut String, model: &Model, shape: ShapeId, value: &Shown) {
    let Shown::Object(object) = value else { return };
    let members = model.members(shape);
    let mut found = Vec::with_capacity(object.len());
    let mut next = 0;
    for (name, value) in object {
        let ahead = (next..members.len()).chain(0..next);
        let is_it = |at: &usize| members[*at].name == *name;
        if let Some(at) = ahead.into_iter().find(is_it) {
            found.push((at, value));
            next = at + 1;
        }
    }
    found.sort_by_key(|(at, _)| *at);
    for (at, value) in found {
        let member = &members[at];
        element(out, model, member.shape, &member.xml, value);
    }
}

fn element(out: &mut String, model: &Model, shape: ShapeId, name: &str, value: &Shown) {
    match (model.shape(shape), value) {
        (_, Shown::Null) => {}
        (Shape::Structure { .. }, _) => {
            open(out, name);
            members(out, model, shape, value);
            close(out, name);
        }
        (
            Shape::List {
                member,
                flattened: true,
                ..
            },
            Shown::List(elements),
        ) => {
            for inner in elements {
                element(out, model, *member, name, inner);
            }
        }
        (Shape::List { .. }, Shown::List(elements)) if elements.is_empty() => {
            out.extend(["<", name, "/>"]);
        }
        (Shape::List { member, xml, .. }, Shown::List(elements)) => {
            open(out, name);
            for inner in elements {
                element(out, model, *member, xml, inner);
            }
            close(out, name);
        }
        (Shape::Map { value: shape }, Shown::Object(entries)) => {
            open(out, name);
            for (key, value) in entries {
                open(out, "entry");
                text_element(out, "key", key);
                element(out, model, *shape, "value", value);
                close(out, "entry");
            }
            close(out, name);
        }
        (Shape::Timestamp(format), Shown::Text(text)) if *format != Instant::Iso8601 => {
            text_element(out, name, &instant::write(*format, text));
        }
        (_, other) => text_element(out, name, &other.text().unwrap_or_default()),
    }
}

fn open(out: &mut String, name: &str) {
    out.extend(["<", name, ">"]);
}

fn close(out: &mut String, name: &str) {
    out.extend(["</", name, ">"]);
}

fn text_element(out: &mut String, name: &str, text: &str) {
    open(out, name);
    // Nearly all text is printable ASCII that XML has no other use for.
    let plain =
        |byte: u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'&' | b'<' | b'>' | b'"');
    match text.bytes().all(plain) {
        true => out.push_str(text),
        false => escaped(out, text),
    }
    close(out, name);
}

fn escaped(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\r' => out.push_str("&#xd;"),
            '\t' | '\n' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'.. => {
                out.push(c);
            }
            // XML 1.0 §2.2 has no way to write other characters.
            _ => out.push('\u{fffd}'),
        }
    }
}
