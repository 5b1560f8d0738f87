//! The chain holds over restarts and rotation, and shows every change.

use super::*;
use serde_json::json;

fn trail(action: &str) -> Trail {
    Trail {
        action: action.to_owned(),
        parameters: json!({"UserData": "c2VjcmV0", "ImageId": "ami-1", "More": [{"UserData": "x"}]}),
        ..Trail::default()
    }
}

fn write(folder: &Path, count: usize) {
    let audit = Audit::open(folder).unwrap();
    for n in 0..count {
        let code = (n % 2 == 1).then_some("AuthFailure");
        audit.record(&trail("RunInstances"), code, 1).unwrap();
    }
}

#[test]
fn the_chain_goes_on_and_shows_every_change() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 5);
    write(dir.path(), 5);
    let summary = verify(dir.path()).unwrap();
    assert_eq!((summary.entries, summary.first), (10, 1));
    let path = dir.path().join(FILE);
    let whole = std::fs::read_to_string(&path).unwrap();
    assert!(!whole.contains("c2VjcmV0"), "user data is not told");
    assert!(whole.contains("ami-1"));
    let lines: Vec<&str> = whole.lines().collect();
    let spoilt = [
        whole.replacen("AuthFailure", "ok", 1),
        whole.replacen(lines[4], "", 1).replace("\n\n", "\n"),
        format!("{}\n{}\n{}", lines[1], lines[0], lines[2..].join("\n")),
        whole.replacen(lines[3], lines[2], 1),
    ];
    for text in spoilt {
        std::fs::write(&path, &text).unwrap();
        assert!(verify(dir.path()).is_err(), "{text}");
    }
}

#[test]
fn a_line_that_a_crash_cut_short_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 3);
    let path = dir.path().join(FILE);
    let whole = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 7]).unwrap();
    write(dir.path(), 2);
    assert_eq!(verify(dir.path()).unwrap().entries, 4);
}

#[test]
fn files_follow_each_other() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        write(dir.path(), 2);
        let audit = Audit::open(dir.path()).unwrap();
        audit.set_aside(&mut audit.tail()).unwrap();
    }
    write(dir.path(), 1);
    assert_eq!(verify(dir.path()).unwrap().entries, 7);
    std::fs::remove_file(dir.path().join(format!("{FILE}.2"))).unwrap();
    assert!(verify(dir.path()).is_err(), "a file is missing in between");
    std::fs::remove_file(dir.path().join(format!("{FILE}.1"))).unwrap();
    assert_eq!(verify(dir.path()).unwrap().first, 5);
}
