//! The verifier's work on the running kernel, against what is recorded and the budget.

use std::fs;
use std::path::Path;

use memscope_tests::verifier::{Diagnosis, FILE, Recorded, series};

use crate::kit::{memscope, run};

#[test]
fn the_verifier_has_no_more_to_do_than_recorded() {
    let doctor = run(memscope().args(["doctor", "--json"]));
    let diagnosis: Diagnosis = serde_json::from_str(&doctor.assert_code(0).stdout).unwrap();
    assert_eq!(diagnosis.problems(), [""; 0]);

    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(FILE);
    let recorded: Recorded = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let series = series(&diagnosis.kernel).unwrap();
    match recorded.kernels.get(&series) {
        Some(kernel) => assert_eq!(
            kernel.problems(&diagnosis),
            [""; 0],
            "if that is right: cargo xtask verifier --update"
        ),
        None => eprintln!("nothing is recorded for Linux {series}: compared with the budget only"),
    }
}

#[test]
fn doctor_tells_what_each_program_costs() {
    let doctor = run(memscope().args(["doctor", "--json"]));
    let diagnosis: Diagnosis = serde_json::from_str(&doctor.assert_code(0).stdout).unwrap();
    assert!(diagnosis.map_bytes > Some(1 << 16), "the ring of doctor's trial is one of the maps");
    for program in &diagnosis.programs {
        assert!(program.translated_bytes > Some(0), "{program:?}");
        assert!(program.verified_instructions > Some(0), "{program:?}");
    }
    let text = run(memscope().arg("doctor")).assert_code(0).stdout.clone();
    for program in &diagnosis.programs {
        assert!(text.contains(&program.name), "{} is missing in: {text}", program.name);
    }
}
