//! Deprecated, disabled and protected images.

use crate::networks::first;
use crate::support::{escape, text, until};
use crate::world::world;
use std::time::SystemTime;

#[test]
fn an_image_is_deprecated_disabled_and_protected() {
    let world = world(20);
    let control = &world.control;
    let (instance, _) = world.instance(&[]);
    let create = [
        ("InstanceId", instance.as_str()),
        ("Name", "image"),
        ("NoReboot", "true"),
    ];
    let image = first(&control.ok("CreateImage", &create), "imageId");
    let named = [("ImageId", image.as_str())];
    let mine = |more: &[(&str, &str)]| {
        let mut params = vec![("Owner.1", "self")];
        params.extend(more);
        let body = control.ok("DescribeImages", &params);
        text(&body, "imageId").contains(&image).then_some(body)
    };
    until("available", || {
        (first(&mine(&[])?, "imageState") == "available").then_some(())
    });
    let everybody = [named[0], ("LaunchPermission.Add.1.Group", "all")];
    control.ok("ModifyImageAttribute", &everybody);
    let stranger = control.account("private");
    let theirs = |more: &str| {
        let body = format!("Action=DescribeImages&Version=2016-11-15{more}");
        let answer = control.post_as(&stranger, SystemTime::now(), "us-east-1", "ec2", &body);
        assert_eq!(answer.0, 200, "{}", answer.1);
        text(&answer.1, "imageId").contains(&image)
    };
    let shown = mine(&[]).unwrap();
    let (made, ends) = (
        first(&shown, "creationDate"),
        first(&shown, "deprecationTime"),
    );
    let year = |text: &str| text[..4].parse::<u32>().unwrap();
    assert_eq!(year(&ends), year(&made) + 2, "public ones end in two years");
    assert!(theirs(""));

    let soon = time::OffsetDateTime::now_utc() + time::Duration::seconds(2);
    let format = time::format_description::well_known::Rfc3339;
    let soon = soon.format(&format).unwrap();
    control.ok(
        "EnableImageDeprecation",
        &[named[0], ("DeprecateAt", &soon)],
    );
    let at = first(&mine(&[]).unwrap(), "deprecationTime");
    assert!(at.ends_with(":00.000Z"), "to the minute: {at}");
    // At most half a minute.
    let began = SystemTime::now();
    while theirs("") {
        assert!(began.elapsed().unwrap().as_secs() < 40, "never deprecated");
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    assert!(theirs("&IncludeDeprecated=true"));
    assert!(
        theirs(&format!("&ImageId.1={}", escape(&image))),
        "who knows the id"
    );
    assert!(mine(&[]).is_some(), "its owner sees it");
    control.ok("DisableImageDeprecation", &named);
    assert!(theirs(""));

    control.ok("DisableImage", &named);
    assert!(!theirs("&IncludeDisabled=true"), "no longer shared");
    assert!(mine(&[]).is_none());
    let shown = mine(&[("IncludeDisabled", "true")]).unwrap();
    assert_eq!(first(&shown, "imageState"), "disabled");
    assert_eq!(first(&shown, "deprecationTime"), "", "nor public");
    let run = [named[0], ("MinCount", "1"), ("MaxCount", "1")];
    control.refused("RunInstances", &run, "InvalidAMIID.Unavailable");
    control.refused(
        "ModifyImageAttribute",
        &everybody,
        "InvalidAMIID.Unavailable",
    );
    let copy = [
        ("SourceImageId", image.as_str()),
        ("SourceRegion", "us-east-1"),
        ("Name", "copy"),
    ];
    control.refused("CopyImage", &copy, "InvalidAMIID.Unavailable");
    control.ok("EnableImage", &named);
    assert_eq!(first(&mine(&[]).unwrap(), "imageState"), "available");
    control.ok("RunInstances", &run);

    let protection = || {
        let asked = [named[0], ("Attribute", "deregistrationProtection")];
        first(&control.ok("DescribeImageAttribute", &asked), "value")
    };
    assert_eq!(protection(), "disabled");
    let protect = "EnableImageDeregistrationProtection";
    control.ok(protect, &named);
    assert_eq!(protection(), "enabled-without-cooldown");
    control.refused("DeregisterImage", &named, "OperationNotPermitted");
    control.ok("DisableImageDeregistrationProtection", &named);
    assert_eq!(protection(), "disabled");
    control.ok(protect, &[named[0], ("WithCooldown", "true")]);
    control.ok("DisableImageDeregistrationProtection", &named);
    assert_eq!(protection(), "enabled-with-cooldown", "for a day more");
    control.refused("DeregisterImage", &named, "OperationNotPermitted");
    assert_eq!(
        text(
            &control.ok("DescribeImages", &[("ImageId.1", &image)]),
            "imageId"
        )
        .len(),
        1
    );
}
