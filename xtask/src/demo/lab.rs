//! `cargo xtask demo --lab`: an unmodified Debian kernel under `ocs-vmm`.
//!
//! `ocs up` runs in the emulated host; the aws CLI runs here, through a forwarded port,
//! since Python is slow there.

use super::Options;
use super::aws::{Aws, text};
use super::story::wait_state;
use super::table::Table;
use crate::lab::{self, Forward, Session, StockGuest, Work};
use crate::sh;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where the API listens in the emulated host.
const PORT: u16 = 8080;
const START_LIMIT: Duration = Duration::from_secs(300);
const GUEST_LIMIT: Duration = Duration::from_secs(240);
/// Memory that the guest fills and frees.
const FILL_MIB: u64 = 64;
/// Linux reports free pages about two seconds after they became free.
const REPORT_LIMIT: Duration = Duration::from_secs(60);

/// Runs as the first process in the emulated host: the installation, until `/lab/stop`.
const HOST_SCRIPT: &str = r#"
state=/run/ocs
"$BIN/ocs" up --state $state --listen 10.0.2.15:$PORT --write-env /lab/env.part &
up=$!
until [ -s /lab/env.part ]; do
    kill -0 $up 2>/dev/null || break
    sleep 0.2
done
"$BIN/ocs" image import --state $state --name stock --root-type ebs IMPORT &&
    cp $state/pki/ca.pem /lab/ca.pem &&
    cp /sys/kernel/mm/transparent_hugepage/shmem_enabled /lab/shmem &&
    mv /lab/env.part /lab/env
while sleep 1; do
    # What each VMM has resident of its guest's memory.
    grep -h RssShmem $(sed -n 's|.*"pid": *\([0-9]*\).*|/proc/\1/status|p' \
        $state/run/instances/*/owner.json)
done >/lab/resident 2>/dev/null &
until [ -e /lab/stop ] || ! kill -0 $up 2>/dev/null; do sleep 0.5; done
cp $state/log/* /lab/ 2>/dev/null
kill -INT $up
wait $up
"#;

/// What the stock guest runs: it is its user data.
const GUEST_SCRIPT: &str = r#"
until wget -S -O /tmp/file "http://SERVER:80/" 2>/tmp/headers; do sleep 1; done
told=$(sed -n 's/.*X-Sha256: *\([0-9a-f]*\).*/\1/p' /tmp/headers)
echo "stock: http bytes=$(wc -c </tmp/file) sha256=$(sha256sum </tmp/file | cut -d' ' -f1) told=$told"
dd if=/dev/urandom of=/data bs=64k count=64 2>/dev/null
wrote=$(sha256sum </data | cut -d' ' -f1)
sync
echo 3 >/proc/sys/vm/drop_caches
dmi() { cat "/sys/class/dmi/id/$1"; }
echo "stock: dmi $(dmi sys_vendor), $(dmi product_name), $(dmi chassis_asset_tag), $(dmi board_asset_tag)"
echo "stock: uuid $(dmi product_uuid) $(dmi product_serial)"
echo "stock: rng $(cat /sys/class/misc/hw_random/rng_current)"
dd if=/dev/zero of=/tmp/fill bs=1M count=FILL_MIB 2>/dev/null
echo "stock: memory filled=$(wc -c </tmp/fill)"
rm /tmp/fill
echo "stock: disk bytes=$(wc -c </data) wrote=$wrote read=$(sha256sum </data | cut -d' ' -f1)"
"#;

/// Boots the stock guest and checks what it did, by its console.
pub fn stock(binaries: &Path) -> Result<Table> {
    let work = Work::new()?;
    let guest = StockGuest::build(work.path())?;
    sh::say(&format!("demo: {} in the emulated host", guest.package));
    let vmlinux = guest.vmlinux.display().to_string();
    let import = [
        ["--kernel", &vmlinux],
        ["--initrd", "/lab/initrd"],
        ["--cmdline", lab::CMDLINE],
        ["--root-image", "/lab/root.ext4"],
        ["--root-size", "1"],
    ];
    let import = import.concat().into_iter().map(str::to_owned);
    installation(
        binaries,
        &work,
        &import.collect::<Vec<_>>(),
        |table, aws| {
            claims(table, aws, &guest.package);
            table.check("memory that it used and freed is the host's again", || {
                memory_goes_back(&work.path().join("resident"))
            });
        },
    )
}

/// Has `claims` checked while an installation with the image `stock` runs in the emulated host.
pub fn installation(
    binaries: &Path,
    work: &Work,
    import: &[String],
    claims: impl FnOnce(&mut Table, Result<Aws>),
) -> Result<Table> {
    let snapshot = lab::prepare()?;
    let script = format!(
        "BIN='{}'\nPORT={PORT}\n{}",
        binaries.display(),
        HOST_SCRIPT.replace("IMPORT", &lab::shell_line(import)),
    );
    let forward = Forward {
        here: free_port()?,
        there: PORT,
    };
    let mut session = Session::start(&snapshot, work, &[forward])?;
    let mut table = Table::default();
    std::thread::scope(|scope| {
        let host = scope.spawn(|| session.run(&script, &mut std::io::stderr()));
        let aws = serving(work, forward.here, || host.is_finished());
        claims(&mut table, aws);
        table.check(
            "the host grants guests' shared memory pages of 2 MiB",
            || {
                let setting = fs::read_to_string(work.path().join("shmem"))?;
                ensure!(setting.contains("[advise]"), "{setting}");
                Ok(setting.trim_end().to_owned())
            },
        );
        if !table.all_hold() {
            table.check("what the parts logged", || bail!("{}", logs(work)));
        }
        fs::write(work.path().join("stop"), "").context("cannot stop the installation")?;
        table.check("the installation ends cleanly", || {
            let code = host
                .join()
                .map_err(|_| anyhow::anyhow!("the session panicked"))??;
            ensure!(code == 0, "`ocs up` ended with {code}");
            Ok("exit code 0".to_owned())
        });
        Ok(table)
    })
}

fn claims(table: &mut Table, aws: Result<Aws>, package: &str) {
    let (mut console, mut id) = (String::new(), String::new());
    table.check(
        "an unmodified Debian cloud kernel boots under ocs-vmm over virtio-pci",
        || {
            let aws = aws?;
            id = run(&aws)?;
            console = wait_end(&aws, &id, GUEST_LIMIT)?;
            let line = line(&console, "stock: kernel ")?;
            let release = package.trim_start_matches("linux-image-");
            ensure!(line.ends_with(release), "{line}, not {release}");
            Ok(line.to_owned())
        },
    );
    table.check("its root is ext4 on a volume that storaged serves", || {
        let line = line(&console, "stock: root /dev/vda ")?;
        ensure!(line.contains(" ext4 rw"), "{line}");
        Ok(line.to_owned())
    });
    table.check(
        "it gets its address by DHCP and its user data by IMDSv2",
        || {
            let dhcp = line(&console, "stock: dhcp address=172.31.")?;
            let own = line(&console, "stock: instance-id ")?;
            let data = line(&console, "stock: user-data ")?;
            ensure!(!id.is_empty() && own.ends_with(&id), "{own}, not {id}");
            Ok(format!("{dhcp}\n{own}\n{data}"))
        },
    );
    table.check(
        "it fetches a file over HTTP from another instance, checksums equal",
        || {
            let line = line(&console, "stock: http ")?;
            equal(line, "sha256", "told")
        },
    );
    table.check(
        "its firmware says that it is an EC2 instance, and which",
        || {
            let dmi = line(&console, "stock: dmi ")?;
            let words = format!("stock: dmi Amazon EC2, t3.nano, Amazon EC2, {id}");
            let uuid = line(&console, "stock: uuid ")?;
            let mut both = uuid.split(' ').skip(2);
            let (one, other) = (both.next(), both.next());
            ensure!(
                dmi == words && one == other && one.is_some_and(|uuid| uuid.starts_with("ec2")),
                "{dmi}\n{uuid}"
            );
            Ok(format!("{dmi}\n{uuid}"))
        },
    );
    table.check("its kernel is given the host's entropy", || {
        let line = line(&console, "stock: rng ")?;
        ensure!(line.contains("virtio_rng"), "{line}");
        Ok(line.to_owned())
    });
    table.check("it writes its disk and reads the same back", || {
        let line = line(&console, "stock: disk ")?;
        equal(line, "wrote", "read")
    });
}

/// The guest filled and freed memory; the largest VMM's resident part shows both.
fn memory_goes_back(resident: &Path) -> Result<String> {
    let until = Instant::now() + REPORT_LIMIT;
    loop {
        let text = fs::read_to_string(resident).context("nobody looked at the VMMs' memory")?;
        let kib: Vec<u64> = text
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1)?.parse().ok())
            .collect();
        // A look lists all VMMs, of which the stock guest's has most.
        let most = kib.iter().copied().max().unwrap_or(0);
        let now = kib.iter().rev().take(2).copied().max().unwrap_or(0);
        let seen = format!("resident {most} KiB at most, {now} KiB in the end");
        if now + (FILL_MIB << 10) * 3 / 4 < most {
            return Ok(seen);
        }
        ensure!(Instant::now() < until, "{seen}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Runs a probe that serves, then the stock guest. Yields the latter's id.
fn run(aws: &Aws) -> Result<String> {
    let image = aws.value("OCS_PROBE_AMI")?;
    let server = aws.call(&[
        "ec2",
        "run-instances",
        "--image-id",
        image,
        "--instance-type",
        "t3.nano",
        "--user-data",
        "listen http 80 1MiB\n",
    ])?;
    let address = text(&server, "/Instances/0/PrivateIpAddress")?;
    let stock = aws.call(&[
        "ec2",
        "run-instances",
        "--image-id",
        &stock_image(aws)?,
        "--instance-type",
        "t3.nano",
        "--metadata-options",
        "HttpTokens=required",
        "--user-data",
        &GUEST_SCRIPT
            .replace("SERVER", address)
            .replace("FILL_MIB", &FILL_MIB.to_string()),
    ])?;
    let id = text(&stock, "/Instances/0/InstanceId")?.to_owned();
    wait_state(aws, &[&id], "running", GUEST_LIMIT)?;
    Ok(id)
}

/// The imported image's id: control looks for new images every other second.
pub fn stock_image(aws: &Aws) -> Result<String> {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let images = aws.call(&[
            "ec2",
            "describe-images",
            "--filters",
            "Name=name,Values=stock",
        ])?;
        match text(&images, "/Images/0/ImageId") {
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(500)),
            id => return Ok(id?.to_owned()),
        }
    }
}

/// The guest's console once it is done.
pub fn wait_end(aws: &Aws, id: &str, limit: Duration) -> Result<String> {
    let until = Instant::now() + limit;
    loop {
        let answer = aws.call(&["ec2", "get-console-output", "--instance-id", id, "--latest"])?;
        let console = answer["Output"]
            .as_str()
            .unwrap_or_default()
            .replace('\r', "");
        if console.contains("stock: end") {
            return Ok(console);
        }
        if Instant::now() > until {
            let lines: Vec<&str> = console.lines().collect();
            let tail = lines[lines.len().saturating_sub(12)..].join("\n");
            bail!("the guest is not done after {limit:?}:\n{tail}");
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// The text of the first line that holds `start`; the kernel's messages may stand before it.
pub fn line<'a>(console: &'a str, start: &str) -> Result<&'a str> {
    console
        .lines()
        .find_map(|line| Some(&line[line.find(start)?..]))
        .with_context(|| format!("the console has no line `{start}…`"))
}

/// The number behind `name=`.
pub fn key_value(line: &str, name: &str) -> Option<u64> {
    let mut words = line.split_whitespace();
    words.find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

fn equal(line: &str, one: &str, other: &str) -> Result<String> {
    let value = |name: &str| {
        line.split(' ')
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            .filter(|value| value.len() == 64)
    };
    ensure!(value(one).is_some() && value(one) == value(other), "{line}");
    Ok(line.to_owned())
}

fn serving(work: &Work, port: u16, ended: impl Fn() -> bool) -> Result<Aws> {
    let until = Instant::now() + START_LIMIT;
    while Instant::now() < until && !ended() {
        if let Ok(env) = fs::read_to_string(work.path().join("env")) {
            let mut aws = Aws::new(&env);
            // From outside of the emulated host only TLS is served.
            aws.set("OCS_ENDPOINT", format!("https://127.0.0.1:{port}"));
            let authority = work.path().join("ca.pem").display().to_string();
            aws.set("AWS_CA_BUNDLE", authority);
            return Ok(aws);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("`ocs up` does not serve in the emulated host after {START_LIMIT:?}")
}

/// The ends of the parts' logs.
fn logs(work: &Work) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(work.path())
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
    {
        let path = entry.path();
        if path.extension().is_some_and(|kind| kind == "log") {
            let log = fs::read(&path).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(8)..].join("\n");
            text.push_str(&format!("{}:\n{tail}\n", path.display()));
        }
    }
    text
}

/// A port that is free now.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The whole demo in the emulated host, for machines without `/dev/kvm`.
pub fn whole_demo(binaries: &Path, options: &Options) -> Result<()> {
    sh::say("this machine has no /dev/kvm: the demo runs in the emulated host, slowly");
    let snapshot = lab::prepare()?;
    let work = Work::new()?;
    let mut words = vec![
        std::env::current_exe()?.display().to_string(),
        "demo".to_owned(),
        "--built".to_owned(),
        binaries.display().to_string(),
        "--json".to_owned(),
        "/lab/table.json".to_owned(),
    ];
    if let Some(sabotage) = options.sabotage {
        words.extend([
            "--sabotage".to_owned(),
            format!("{sabotage:?}").to_lowercase(),
        ]);
    }
    let mut session = Session::start(&snapshot, &work, &[])?;
    let code = session.run(&lab::shell_line(&words), &mut std::io::stdout())?;
    if let Some(json) = &options.json {
        fs::copy(work.path().join("table.json"), json).context("the demo wrote no table")?;
    }
    ensure!(code == 0, "not every claim holds");
    Ok(())
}
