//! An EC2 Query body, decoded by the model's tables.
//!
//! What decodes has members that the model knows, and validation never panics on it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ocs_control::wire::query::{decode, parse_form};
use ocs_control::wire::{ec2, validate};

fuzz_target!(|body: &str| {
    let Ok(mut parameters) = parse_form(body) else {
        return;
    };
    let Some(at) = parameters.iter().position(|(name, _)| name == "Action") else {
        return;
    };
    let (_, action) = parameters.swap_remove(at);
    let model = ec2();
    let Some(operation) = model.operations.get(&action) else {
        return;
    };
    if let Ok(value) = decode(model, operation.input, parameters) {
        assert_eq!(
            validate::strangers(model, operation.input, &value),
            Vec::<String>::new()
        );
        let _ = validate::request(model, operation.input, &value);
    }
});
