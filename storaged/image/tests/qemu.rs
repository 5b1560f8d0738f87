//! QEMU is the judge: of what we write by `qemu-img check` and `compare`, and of what
//! we read by what it converts to raw.

use ocs_disk_image::{CHUNK_BYTES, Format, ImageError, MAX_BYTES, Reader, Writer};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder with a raw disk of data, zeros and holes.
struct Bench {
    dir: tempfile::TempDir,
}

const SIZE: u64 = 9 * 1024 * 1024 + 4096;

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("disk.raw")).unwrap();
        file.set_len(SIZE).unwrap();
        let text = b"compressible, ".repeat(40_000);
        let noise = noise(300_000);
        for (at, bytes) in [
            (0, &text[..100_000]),
            (1 << 20, &noise[..]),
            (3 << 20, &[0; 200_000][..]),
            ((5 << 20) + 512, &text[..]),
            (SIZE - 1024, &noise[..1024]),
        ] {
            file.write_all_at(bytes, at).unwrap();
        }
        Self { dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn raw(&self) -> Vec<u8> {
        std::fs::read(self.at("disk.raw")).unwrap()
    }

    /// Makes `name` of the raw disk.
    fn convert(&self, options: &[&str], name: &str) {
        let (from, to) = (self.at("disk.raw"), self.at(name));
        let mut args = vec!["convert", "-f", "raw", "-O", "qcow2"];
        args.extend(options);
        args.extend([text(&from), text(&to)]);
        qemu_img(&args);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn noise(len: usize) -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Runs qemu-img (Debian: qemu-utils), which must succeed.
fn qemu_img(args: &[&str]) {
    let output = Command::new("qemu-img").args(args).output();
    let output = output.expect("qemu-img is needed: apt-get install qemu-utils");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {args:?}: {error}");
}

fn read(path: &Path, format: Format) -> Result<Vec<u8>, ImageError> {
    let reader = Reader::open(File::open(path)?, format, MAX_BYTES)?;
    let mut disk = vec![0; reader.size_bytes() as usize];
    let mut last = None;
    reader.chunks(|at, bytes| {
        assert!(last.is_none_or(|last| last < at) && at % CHUNK_BYTES as u64 == 0);
        assert!(bytes.iter().any(|b| *b != 0));
        disk[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        last = Some(at);
        Ok::<_, ImageError>(())
    })?;
    Ok(disk)
}

fn write(from: &Path, of: Format, to: &Path, format: Format) {
    let reader = Reader::open(File::open(from).unwrap(), of, MAX_BYTES).unwrap();
    let file = File::create(to).unwrap();
    let mut writer = Writer::new(&file, format, reader.size_bytes()).unwrap();
    reader.chunks(|at, bytes| writer.put(at, bytes)).unwrap();
    writer.finish().unwrap();
}

#[test]
fn what_qemu_writes_is_read_alike() {
    let bench = Bench::new();
    let raw = bench.raw();
    assert!(read(&bench.at("disk.raw"), Format::Raw).unwrap() == raw);
    for options in [
        &[][..],
        &["-c"],
        &["-o", "compat=0.10"],
        &["-c", "-o", "compat=0.10,cluster_size=4096"],
        &["-o", "cluster_size=512"],
        &["-c", "-o", "cluster_size=512"],
        &["-o", "cluster_size=2M"],
        &["-c", "-o", "cluster_size=2M"],
        &["-o", "refcount_bits=1"],
        &["-o", "preallocation=metadata"],
        &["-o", "preallocation=falloc,lazy_refcounts=on"],
        &["-S", "0"],
    ] {
        bench.convert(options, "theirs.qcow2");
        let ours = read(&bench.at("theirs.qcow2"), Format::Qcow2);
        assert!(
            ours.unwrap_or_else(|e| panic!("{options:?}: {e}")) == raw,
            "{options:?}"
        );
    }
}

#[test]
fn what_we_write_passes_qemu_s_check_and_compare() {
    let bench = Bench::new();
    let (raw, ours) = (bench.at("disk.raw"), bench.at("ours.qcow2"));
    write(&raw, Format::Raw, &ours, Format::Qcow2);
    qemu_img(&["check", "-f", "qcow2", text(&ours)]);
    qemu_img(&[
        "compare",
        "-f",
        "raw",
        "-F",
        "qcow2",
        text(&raw),
        text(&ours),
    ]);
    assert!(ours.metadata().unwrap().len() < 4 << 20, "holes stay holes");
    let back = bench.at("back.raw");
    write(&ours, Format::Qcow2, &back, Format::Raw);
    assert!(std::fs::read(&back).unwrap() == bench.raw());
    use std::os::unix::fs::MetadataExt;
    assert!(back.metadata().unwrap().blocks() * 512 < 4 << 20);
    // From the smallest to a disk of many L2 tables and refcount blocks.
    for (size, data) in [
        (0, None),
        (512, Some(0)),
        (6 << 40, Some((6 << 40) - 65536)),
    ] {
        let sparse = bench.at("sparse.raw");
        let file = File::create(&sparse).unwrap();
        file.set_len(size).unwrap();
        if let Some(at) = data {
            file.write_all_at(&[7; 512], at).unwrap();
        }
        write(&sparse, Format::Raw, &ours, Format::Qcow2);
        qemu_img(&["check", "-f", "qcow2", text(&ours)]);
        let compare = ["compare", "-f", "raw", "-F", "qcow2"];
        qemu_img(&[&compare[..], &[text(&sparse), text(&ours)]].concat());
    }
}

#[test]
fn the_active_state_of_a_file_with_snapshots_is_read() {
    let bench = Bench::new();
    bench.convert(&[], "theirs.qcow2");
    let file = bench.at("theirs.qcow2");
    let path = text(&file);
    qemu_img(&["snapshot", "-c", "first", path]);
    let write = [
        "-f",
        "qcow2",
        "-c",
        "write -P 0x5a 2M 128k",
        "-c",
        "discard 0 64k",
        path,
    ];
    let io = Command::new("qemu-io").args(write).output();
    assert!(io.expect("qemu-io is needed").status.success());
    qemu_img(&["snapshot", "-c", "second", path]);
    let flat = bench.at("flat.raw");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", path, text(&flat)]);
    let ours = read(&file, Format::Qcow2).unwrap();
    assert!(ours == std::fs::read(&flat).unwrap());
    assert!(ours[2 << 20] == 0x5a && ours != bench.raw());
}

#[test]
fn what_is_refused_is_named() {
    let bench = Bench::new();
    bench.convert(&[], "base.qcow2");
    let base = bench.at("base.qcow2");
    let refused = bench.at("refused.qcow2");
    let create = |options: &[&str], name: &str| {
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        args.extend(options);
        args.push(text(&refused));
        args.push("4M");
        qemu_img(&args);
        let error = read(&refused, Format::Qcow2).unwrap_err().to_string();
        assert!(error.contains(name), "{options:?}: {error}");
    };
    create(&["-F", "qcow2", "-b", text(&base)], "backing_file_offset");
    let data = bench.at("external.raw");
    let external = format!("data_file={}", text(&data));
    create(&["-o", &external], "external data file");
    create(&["-o", "extended_l2=on"], "extended L2");
    create(&["-o", "compression_type=zstd"], "compression");
    // Made by hand: QEMU takes seconds to make a key.
    let mut bytes = std::fs::read(&base).unwrap();
    bytes[35] = 1;
    std::fs::write(&refused, &bytes).unwrap();
    let encrypted = read(&refused, Format::Qcow2).unwrap_err().to_string();
    assert!(encrypted.contains("crypt_method"), "{encrypted}");
    let small = Reader::open(File::open(&base).unwrap(), Format::Qcow2, SIZE - 1);
    assert!(small.err().unwrap().to_string().starts_with("size: "));
    assert!(
        read(&bench.at("disk.raw"), Format::Qcow2)
            .unwrap_err()
            .to_string()
            .contains("magic")
    );
}

#[test]
fn every_damage_is_an_error_that_names_its_place_or_reads_to_the_end() {
    let bench = Bench::new();
    for options in [&[][..], &["-c"], &["-o", "cluster_size=512"]] {
        bench.convert(options, "sound.qcow2");
        let sound = std::fs::read(bench.at("sound.qcow2")).unwrap();
        let all = |bytes: &[u8]| -> Result<u32, ImageError> {
            let (mut sum, reader) = (0u32, Reader::open(bytes, Format::Qcow2, SIZE)?);
            reader.chunks(|at, chunk| {
                let own = chunk
                    .iter()
                    .fold(at as u32, |s, b| s.rotate_left(5) ^ u32::from(*b));
                sum = sum.wrapping_add(own);
                Ok::<_, ImageError>(())
            })?;
            Ok(sum)
        };
        let whole = all(&sound).unwrap();
        let mut cuts = 0;
        for cut in (0..sound.len()).step_by(sound.len() / 61) {
            // What lies behind the disk's end in its last cluster is no loss.
            match all(&sound[..cut]) {
                Ok(sum) => assert_eq!(sum, whole, "{options:?}, {cut}"),
                Err(error) => {
                    let error = error.to_string();
                    cuts += usize::from(error.contains("file's end") || error.contains("inflate"));
                }
            }
        }
        assert!(
            cuts > 20,
            "{options:?}: most cuts are in tables and clusters"
        );
        for at in 0..104 {
            for value in [1, 0xff] {
                let mut bytes = sound.clone();
                bytes[at] = value;
                if let Err(error) = all(&bytes) {
                    let error = error.to_string();
                    let named = ["header, ", "L1 entry", "L2 entry", "size: ", "inflate"];
                    assert!(named.iter().any(|n| error.contains(n)), "{at}: {error}");
                }
            }
        }
    }
}

/// A file of few bytes that claims to hold the same cluster everywhere.
#[test]
fn a_file_gives_no_more_than_it_holds() {
    let bench = Bench::new();
    bench.convert(&["-S", "0"], "sound.qcow2");
    let mut bytes = std::fs::read(bench.at("sound.qcow2")).unwrap();
    let word = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let l1 = word(&bytes, 40) as usize;
    let table = (word(&bytes, l1) & !(1 << 63)) as usize;
    let first = bytes[table..table + 8].to_vec();
    let end = word(&bytes, table) & !(1 << 63);
    for entry in 0..(SIZE / 65536) as usize {
        bytes[table + 8 * entry..][..8].copy_from_slice(&first);
    }
    bytes.truncate(end as usize + 3 * 65536);
    let mut given = 0;
    let error = Reader::open(&bytes[..], Format::Qcow2, SIZE)
        .unwrap()
        .chunks(|_, chunk| {
            given += chunk.len();
            Ok::<_, ImageError>(())
        })
        .unwrap_err()
        .to_string();
    assert!(error.contains("more bytes than the file has"), "{error}");
    assert!(given <= bytes.len());
}
