use super::*;

fn good() -> serde_json::Value {
    serde_json::json!({
        "version": 1, "id": "i-1", "vcpus": 1, "memory_mib": 64,
        "boot": {"kernel": {"path": "probe.elf"}, "smbios": {"vendor": "V",
                 "uuid": "01234567-89ab-cdef-0123-456789abcdef"}}, "restore": null, "cpu": "host",
        "serial": {"ring": {"fd": 7}, "capacity_bytes": 65536},
        "net": [{"id": "eni-1", "tap": {"fd": 8}, "mac": "02:00:00:00:00:01", "mtu": 1500,
                 "transmit": {}}],
        "transmit": {"baseline": {"per_s": 1000, "burst": 1000000}},
        "block": [{"id": "vol1", "listener": {"path": "/x"}, "backend_uid": 0, "queues": 1}],
        "rng": {"bytes_per_s": 4096}, "console": {}, "balloon": {"target_mib": 8},
        "vsock": {"guest_cid": 3, "listener": {"fd": 9}, "uid": 0},
    })
}

#[test]
fn a_good_spec_survives_a_round_trip() {
    let spec = Spec::parse(good().to_string().as_bytes()).unwrap();
    assert_eq!(spec.serial.ring, Source::Fd(7));
    let again = Spec::parse(&serde_json::to_vec(&spec).unwrap()).unwrap();
    assert_eq!(spec, again);
}

#[test]
fn each_bad_field_is_named() {
    for (pointer, value, named) in [
        ("/version", serde_json::json!(2), "version"),
        ("/vcpus", serde_json::json!(65), "vcpus"),
        ("/memory_mib", serde_json::json!(1), "memory_mib"),
        ("/boot", serde_json::json!(null), "boot: is missing"),
        ("/boot", serde_json::json!({}), "boot.kernel: is missing"),
        (
            "/boot",
            serde_json::json!({"disk": "vol2"}),
            "boot.disk: \"vol2\" is no disk",
        ),
        (
            "/boot",
            serde_json::json!({"disk": "vol1", "kernel": {"fd": 10}}),
            "boot.disk: cannot be with",
        ),
        (
            "/boot/smbios/uuid",
            serde_json::json!("01234567-89ab-cdef-0123-456789abcdeg"),
            "boot.smbios.uuid",
        ),
        (
            "/boot/smbios/vendor",
            serde_json::json!("a\nb"),
            "boot.smbios.vendor",
        ),
        (
            "/restore",
            serde_json::json!({"state": {"fd": 9}, "memory": [{"fd": 10}]}),
            "restore: cannot be with boot",
        ),
        ("/cpu", serde_json::json!("x86-64-v9"), "x86-64-v9"),
        (
            "/net/0/mac",
            serde_json::json!("03:00:00:00:00:01"),
            "net[0].mac",
        ),
        ("/net/0/mtu", serde_json::json!(100), "net[0].mtu"),
        (
            "/net/0/transmit",
            serde_json::json!({"packets": {"per_s": 0, "burst": 1}}),
            "net[0].transmit.packets.per_s",
        ),
        (
            "/transmit/baseline/burst",
            serde_json::json!(0),
            "transmit.baseline.burst",
        ),
        ("/block/0/queues", serde_json::json!(0), "block[0].queues"),
        ("/block/0/id", serde_json::json!(""), "block[0].id"),
        ("/block/0/id", serde_json::json!("eni-1"), "block[0].id"),
        ("/rng/bytes_per_s", serde_json::json!(1), "rng.bytes_per_s"),
        (
            "/balloon/target_mib",
            serde_json::json!(49),
            "balloon.target_mib",
        ),
        ("/vsock/guest_cid", serde_json::json!(2), "vsock.guest_cid"),
        (
            "/vsock/listener",
            serde_json::json!({"fd": 8}),
            "descriptor",
        ),
        (
            "/serial/capacity_bytes",
            serde_json::json!(1),
            "serial.capacity_bytes",
        ),
        (
            "/net/0/tap",
            serde_json::json!({"fd": 7}),
            "descriptor 7 is already serial.ring's",
        ),
    ] {
        let mut json = good();
        *json.pointer_mut(pointer).unwrap() = value;
        let error = Spec::parse(json.to_string().as_bytes())
            .unwrap_err()
            .to_string();
        assert!(error.contains(named), "{pointer}: {error}");
    }
    let mut json = good();
    json["boot"] = serde_json::json!(null);
    json["restore"] = serde_json::json!({"state": {"fd": 9}, "memory": [{"fd": 10}]});
    let error = Spec::parse(json.to_string().as_bytes()).unwrap_err();
    assert!(error.to_string().contains("balloon: cannot"), "{error}");
    json["balloon"] = serde_json::json!(null);
    json["block"] = serde_json::json!([]);
    json["restore"] = serde_json::json!({"state": {"fd": 9}, "memory": []});
    let error = Spec::parse(json.to_string().as_bytes()).unwrap_err();
    assert!(
        error.to_string().contains("restore.memory: 0 files"),
        "{error}"
    );
    let mut json = good();
    json["surprise"] = serde_json::json!(1);
    assert!(
        Spec::parse(json.to_string().as_bytes())
            .unwrap_err()
            .to_string()
            .contains("surprise")
    );
}

/// The schemas beside the sources are those of the types; `OCS_WRITE_SCHEMA=1` writes them anew.
#[test]
fn the_published_schemas_are_those_of_the_types() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let control = serde_json::json!({
        "request": schemars::schema_for!(control::Request),
        "reply": schemars::schema_for!(control::Reply),
        "exit_record": schemars::schema_for!(exit::ExitRecord),
    });
    let spec = serde_json::to_value(schemars::schema_for!(Spec)).unwrap();
    for (name, schema) in [("spec", spec), ("control", control)] {
        let path = folder.join(format!("{name}.schema.json"));
        if std::env::var_os("OCS_WRITE_SCHEMA").is_some() {
            let text = format!("{}\n", serde_json::to_string_pretty(&schema).unwrap());
            std::fs::write(&path, text).unwrap();
        }
        // As values: whether members keep their order depends on what else is built.
        let published = std::fs::read_to_string(&path).unwrap_or_default();
        let published: serde_json::Value = serde_json::from_str(&published).unwrap_or_default();
        assert!(published == schema, "{} is of other types", path.display());
    }
}
