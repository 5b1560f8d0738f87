//! Images: two of the system account's own, and those that an operator lists in
//! a manifest. Their ids follow from region and name, so they need no rows.

use crate::rows::{ImageId, SnapshotId};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::path::Path;

/// The account that public images belong to; its owner alias is `amazon`.
pub const SYSTEM_ACCOUNT: &str = "137112412989";
/// When the built-in images were made: the day this project began.
const CREATED_AT: &str = "2026-11-01T00:00:00.000Z";
/// Most images of a manifest.
const MAX_IMAGES: usize = 1_000;

/// Where an image's root is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootType {
    /// A volume.
    Ebs,
    /// An instance-store disk.
    InstanceStore,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Its name, unique.
    pub name: String,
    /// What it is.
    #[serde(default)]
    pub description: String,
    /// Kernel, a file of the node's image folder; nothing: the root holds it.
    #[serde(default)]
    pub kernel: String,
    /// Initial RAM disk, or nothing.
    #[serde(default)]
    pub initrd: String,
    /// Kernel command line.
    #[serde(default)]
    pub cmdline: String,
    /// First content of the root, a file of the image folder; nothing: zeros.
    #[serde(default)]
    pub root_image: String,
    /// Size of the root.
    pub root_size_gib: u32,
    /// Where the root is.
    pub root_type: RootType,
    /// Its architecture.
    #[serde(default = "architecture")]
    pub architecture: String,
    /// `v2.0`: instances require metadata tokens unless told otherwise.
    #[serde(default)]
    pub imds_support: String,
    /// When it was made, as EC2 writes it.
    #[serde(default = "created_at")]
    pub created_at: String,
}

fn architecture() -> String {
    "x86_64".to_owned()
}

fn created_at() -> String {
    CREATED_AT.to_owned()
}

impl Image {
    /// Its id in a region.
    pub fn id(&self, region: &str) -> ImageId {
        ImageId::derived(&format!("image/{region}/{}", self.name))
    }

    /// The snapshot that its root volume is made from.
    pub fn snapshot(&self, region: &str) -> SnapshotId {
        SnapshotId::derived(&format!("snapshot/{region}/{}", self.name))
    }

    /// `/dev/sda1`.
    pub fn root_device(&self) -> &'static str {
        "/dev/sda1"
    }
}

/// All images.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    /// In order of their names.
    pub images: Vec<Image>,
}

impl Catalogue {
    /// The built-in images and those of a manifest; a missing manifest is empty.
    ///
    /// # Errors
    /// Names what is wrong with the manifest.
    pub fn load(manifest: Option<&Path>) -> Result<Self> {
        let mut images = vec![built_in(RootType::Ebs), built_in(RootType::InstanceStore)];
        let text = match manifest {
            Some(path) if path.exists() => std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?,
            _ => "[]".to_owned(),
        };
        let listed: Vec<Image> = serde_json::from_str(&text).context("images manifest")?;
        ensure!(
            listed.len() <= MAX_IMAGES,
            "the images manifest lists more than {MAX_IMAGES}"
        );
        for image in listed {
            for file in [&image.kernel, &image.initrd, &image.root_image] {
                let plain = !file.contains('/') && file != "..";
                ensure!(
                    plain,
                    "image {:?} names {file:?}, which is no file name",
                    image.name
                );
            }
            ensure!(
                !(image.kernel.is_empty() && image.root_image.is_empty()),
                "image {:?} has neither a kernel nor a root image that could hold one",
                image.name
            );
            let sized = (1..=16_384).contains(&image.root_size_gib);
            ensure!(
                sized,
                "image {:?} has a root of {} GiB",
                image.name,
                image.root_size_gib
            );
            images.retain(|other| other.name != image.name);
            images.push(image);
        }
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { images })
    }

    /// The image of an id.
    pub fn find(&self, region: &str, id: ImageId) -> Option<&Image> {
        self.images.iter().find(|image| image.id(region) == id)
    }
}

fn built_in(root_type: RootType) -> Image {
    let (name, description) = match root_type {
        RootType::Ebs => (
            "ocs-probe",
            "Test guest that takes its orders from user data",
        ),
        RootType::InstanceStore => (
            "ocs-probe-instance-store",
            "Test guest with its root on an instance store",
        ),
    };
    Image {
        name: name.to_owned(),
        description: description.to_owned(),
        kernel: "ocs-probe.elf".to_owned(),
        initrd: String::new(),
        cmdline: String::new(),
        root_image: String::new(),
        root_size_gib: 1,
        root_type,
        architecture: architecture(),
        imds_support: String::new(),
        created_at: created_at(),
    }
}
