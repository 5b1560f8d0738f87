//! Which kernel of a folder is booted.
//!
//! Of several entries of the UAPI boot loader specification (Type #1) that of the highest
//! version; of a `grub.cfg` the first; else the highest version of `vmlinuz-*`.

use std::cmp::Ordering;

/// A folder like `/boot`; names are relative to it.
pub(super) trait Folder {
    /// The names in a folder below, none if it is not there.
    fn list(&self, folder: &str) -> Result<Vec<String>, String>;
    /// A file's text, if it is there.
    fn text(&self, name: &str) -> Result<Option<String>, String>;
}

/// What to boot.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Item {
    /// The kernel's path.
    pub kernel: String,
    /// The paths of its initrds, in order.
    pub initrds: Vec<String>,
    /// Its command line, where somebody wrote it down.
    pub options: Option<String>,
}

/// Entries that are read.
const MAX_ENTRIES: usize = 256;

pub(super) fn choose(folder: &dyn Folder) -> Result<Option<Item>, String> {
    if let Some(item) = loader_entry(folder)? {
        return Ok(Some(item));
    }
    for name in ["grub/grub.cfg", "grub2/grub.cfg"] {
        let item = folder.text(name)?.and_then(|text| grub(&text));
        if item.is_some() {
            return Ok(item);
        }
    }
    Ok(versions(&folder.list("")?))
}

fn loader_entry(folder: &dyn Folder) -> Result<Option<Item>, String> {
    let mut best: Option<(String, Item)> = None;
    let names = folder.list("loader/entries")?;
    let entries = names.iter().filter(|name| name.ends_with(".conf"));
    for name in entries.take(MAX_ENTRIES) {
        let Some(text) = folder.text(&format!("loader/entries/{name}"))? else {
            continue;
        };
        let Some((version, item)) = parse_entry(&text) else {
            continue;
        };
        if best
            .as_ref()
            .is_none_or(|(other, _)| compare(&version, other).is_gt())
        {
            best = Some((version, item));
        }
    }
    Ok(best.map(|(_, item)| item))
}

/// One entry with its version; none if it boots no Linux.
fn parse_entry(text: &str) -> Option<(String, Item)> {
    let (mut version, mut item) = (String::new(), Item::default());
    let mut options = Vec::new();
    for line in text.lines() {
        let Some((key, value)) = line.trim().split_once(char::is_whitespace) else {
            continue;
        };
        let value = value.trim();
        match key {
            "version" => version = value.to_owned(),
            "linux" => item.kernel = value.to_owned(),
            // GRUB puts several and variables here.
            "initrd" => item.initrds.extend(plain(value.split_whitespace())),
            "options" => options.extend(plain(value.split_whitespace())),
            _ => {}
        }
    }
    if item.kernel.is_empty() {
        return None;
    }
    item.options = Some(options.join(" "));
    Some((version, item))
}

/// The first entry that boots Linux.
fn grub(text: &str) -> Option<Item> {
    let mut item: Option<Item> = None;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let command = words.next().unwrap_or_default();
        match (command, &mut item) {
            ("linux" | "linux16" | "linuxefi", None) => {
                let mut words = plain(words);
                let kernel = words.next()?;
                item = Some(Item {
                    kernel,
                    initrds: Vec::new(),
                    options: Some(words.collect::<Vec<_>>().join(" ")),
                });
            }
            ("initrd" | "initrd16" | "initrdefi", Some(item)) => item.initrds.extend(plain(words)),
            ("}", Some(_)) => break,
            _ => {}
        }
    }
    item
}

/// Words without quotes, those left out that only GRUB could expand.
fn plain<'a>(words: impl Iterator<Item = &'a str>) -> impl Iterator<Item = String> {
    words
        .filter(|word| !word.contains('$'))
        .map(|word| word.replace(['\'', '"'], ""))
        .filter(|word| !word.is_empty())
}

/// By the names of files alone.
fn versions(names: &[String]) -> Option<Item> {
    let has = |name: &str| names.iter().any(|other| other == name);
    let kernels = names
        .iter()
        .filter_map(|name| name.strip_prefix("vmlinuz-"));
    let newest = kernels
        .filter(|version| !version.contains("rescue") && !version.ends_with(".old"))
        .max_by(|a, b| compare(a, b));
    let (kernel, candidates) = match newest {
        Some(version) => (
            format!("vmlinuz-{version}"),
            vec![
                format!("initrd.img-{version}"),
                format!("initramfs-{version}.img"),
                format!("initrd-{version}"),
            ],
        ),
        None if has("vmlinuz") => ("vmlinuz".to_owned(), vec!["initrd.img".to_owned()]),
        None => return None,
    };
    Some(Item {
        kernel,
        initrds: candidates
            .into_iter()
            .find(|name| has(name))
            .into_iter()
            .collect(),
        options: None,
    })
}

/// Versions in the order in which they came out: numbers are compared as such.
fn compare(a: &str, b: &str) -> Ordering {
    parts(a).cmp(parts(b))
}

/// Runs of digits and of others: a number, or a text.
fn parts(version: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut rest = version;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let is_digit = first.is_ascii_digit();
        let end = rest
            .find(|c: char| c.is_ascii_digit() != is_digit)
            .unwrap_or(rest.len());
        let (part, behind) = rest.split_at(end);
        rest = behind;
        // Without leading zeros, the longer number is the greater one.
        let part = if is_digit {
            part.trim_start_matches('0')
        } else {
            part
        };
        Some((if is_digit { part.len() + 1 } else { 0 }, part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[derive(Default)]
    struct Files(BTreeMap<&'static str, &'static str>);

    impl Folder for Files {
        fn list(&self, folder: &str) -> Result<Vec<String>, String> {
            let names = self.0.keys().filter_map(|path| match folder {
                "" => Some(*path),
                _ => path.strip_prefix(folder)?.strip_prefix('/'),
            });
            Ok(names
                .filter(|name| !name.contains('/'))
                .map(str::to_owned)
                .collect())
        }

        fn text(&self, name: &str) -> Result<Option<String>, String> {
            Ok(self.0.get(name).map(|text| (*text).to_owned()))
        }
    }

    fn item(kernel: &str, initrds: &[&str], options: Option<&str>) -> Item {
        Item {
            kernel: kernel.to_owned(),
            initrds: initrds.iter().map(|name| (*name).to_owned()).collect(),
            options: options.map(str::to_owned),
        }
    }

    #[test]
    fn the_highest_version_is_booted() {
        for (less, more) in [
            ("6.1.0-9-amd64", "6.1.0-10-amd64"),
            ("5.10.0", "6.1.0"),
            ("6.1", "6.1.1"),
            ("6.1.0-rc1", "6.1.0-rc02"),
            ("6.1.9", "6.12.1+deb12"),
        ] {
            assert!(compare(less, more).is_lt(), "{less} {more}");
            assert!(compare(more, less).is_gt(), "{less} {more}");
        }
        let names = [
            "vmlinuz-6.1.0-9-amd64",
            "vmlinuz-6.1.0-10-amd64",
            "initrd.img-6.1.0-9-amd64",
            "initrd.img-6.1.0-10-amd64",
            "vmlinuz-0-rescue-abc",
        ];
        assert_eq!(
            versions(&names.map(str::to_owned)).unwrap(),
            item(
                "vmlinuz-6.1.0-10-amd64",
                &["initrd.img-6.1.0-10-amd64"],
                None
            )
        );
        assert_eq!(versions(&["config-6.1".to_owned()]), None);
    }

    #[test]
    fn an_entry_of_a_boot_loader_wins_over_grub_and_that_over_names() {
        let mut files = Files::default();
        files.0.insert("vmlinuz-9", "");
        assert_eq!(choose(&files).unwrap(), Some(item("vmlinuz-9", &[], None)));
        files.0.insert(
            "grub/grub.cfg",
            "set default=0\nmenuentry 'Debian' --class debian {\n\tinsmod gzio\n\
             \tlinux\t/boot/vmlinuz-6 root=PARTUUID=\"ab-1\" ro  quiet $extra\n\
             \tinitrd\t/boot/early.img /boot/initrd.img-6\n}\n\
             menuentry 'older' {\n linux /boot/vmlinuz-5 ro\n initrd /boot/initrd.img-5\n}\n",
        );
        assert_eq!(
            choose(&files).unwrap(),
            Some(item(
                "/boot/vmlinuz-6",
                &["/boot/early.img", "/boot/initrd.img-6"],
                Some("root=PARTUUID=ab-1 ro quiet")
            ))
        );
        files.0.insert(
            "loader/entries/a.conf",
            "title one\nversion 6.9.9\nlinux /vmlinuz-6.9.9\noptions ro\n",
        );
        files.0.insert(
            "loader/entries/b.conf",
            "# newest\nversion 6.10.1\nlinux /vmlinuz-6.10.1\ninitrd /initrd-6.10.1 $tuned\n\
             options root=UUID=1 ro\noptions console=ttyS0\n",
        );
        files
            .0
            .insert("loader/entries/c.conf", "version 9\nefi /shell.efi\n");
        assert_eq!(
            choose(&files).unwrap(),
            Some(item(
                "/vmlinuz-6.10.1",
                &["/initrd-6.10.1"],
                Some("root=UUID=1 ro console=ttyS0")
            ))
        );
    }
}
