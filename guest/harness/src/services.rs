//! What the guest meets on its network: programs that QEMU starts for each connection,
//! with the connection as their standard input and output.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// An IMDSv2 server with one user data, as a shell script: EC2's own answers to the
/// requests that the probe makes, and 401 to those without the token.
pub fn metadata(folder: &Path, user_data: &str) -> PathBuf {
    fs::write(folder.join("user-data"), user_data).expect("the folder is writable");
    let script = format!(
        r#"#!/bin/sh
read -r method path _
token=
while read -r header; do
    header=${{header%"$(printf '\r')"}}
    [ -z "$header" ] && break
    [ "$header" = "X-aws-ec2-metadata-token: TOKEN==" ] && token=1
done
answer() {{
    printf 'HTTP/1.1 %s\r\nContent-Length: %s\r\nConnection: close\r\n\r\n' "$1" "$(printf %s "$2" | wc -c)"
    printf %s "$2"
}}
case "$method $path $token" in
    "PUT /latest/api/token ") answer "200 OK" "TOKEN==" ;;
    *" 1") case "$path" in
        */instance-id) answer "200 OK" "i-0123456789abcdef0" ;;
        */local-ipv4) answer "200 OK" "169.254.160.15" ;;
        */user-data) answer "200 OK" "$(cat {folder}/user-data)" ;;
        *) answer "404 Not Found" "" ;;
    esac ;;
    *) answer "401 Unauthorized" "" ;;
esac
"#,
        folder = folder.display()
    );
    install(folder.join("metadata"), &script)
}

/// An HTTP server whose body is `bytes` times the letter `a`, ended by closing.
pub fn letters(folder: &Path, bytes: usize) -> PathBuf {
    let script = format!(
        r#"#!/bin/sh
while read -r header && [ "$header" != "$(printf '\r')" ]; do :; done
printf 'HTTP/1.0 200 OK\r\n\r\n'
head -c {bytes} /dev/zero | tr '\0' a
"#
    );
    install(folder.join("letters"), &script)
}

fn install(path: PathBuf, script: &str) -> PathBuf {
    fs::write(&path, script).expect("the folder is writable");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is our file");
    path
}
