//! Code that is mapped during the trace, and gone before memscope looks.

use std::path::Path;

use memscope_tests::{Variant, programs};
use serde_json::Value;

use crate::kit::{Export, Scratch, number, run};

/// The site in which the plugin allocates.
fn plugin_sites(export: &Export) -> Vec<&Value> {
    let of_plugin = export.blocks().into_iter().filter(|block| block.size == 999);
    let mut sites: Vec<u64> = of_plugin.map(|block| block.site).collect();
    sites.sort_unstable();
    sites.dedup();
    export.list("sites").iter().filter(|site| sites.contains(&number(site, "site"))).collect()
}

fn assert_in_plugin(frame: &Value, plugin: &Path) {
    assert_eq!(frame["module"], plugin.to_str().unwrap(), "{frame}");
    assert_eq!(frame["function"], "plugin_leak", "{frame}");
    assert!(frame["file"].as_str().unwrap().ends_with("plugin.c"), "{frame}");
}

fn assert_no_unknown_caller(export: &Export) {
    for site in export.list("sites") {
        let first = &site["frames"][0];
        assert!(first["module"].is_string(), "the caller is in a known file: {site}");
    }
}

/// `leaks` loads a library, allocates in it and closes it, in well under a millisecond.
#[test]
fn a_library_that_is_closed_at_once_is_known_in_all_its_allocations() {
    let plugin = programs::plugin_library(Variant::Default);
    for times in ["1", "500"] {
        let scratch = Scratch::new();
        let program = programs::build("leaks.c", Variant::Default);
        let argument = format!("plugin={}", plugin.display());
        let arguments = [times, "0", argument.as_str(), "unload"];
        run(&mut scratch.trace_program(&[], program, &arguments)).assert_code(0);
        let export = scratch.export();
        export.assert_complete();
        let sites = plugin_sites(&export);
        let allocations: u64 = sites.iter().map(|site| number(site, "allocations")).sum();
        assert_eq!(allocations.to_string(), times, "{sites:#?}");
        for site in sites {
            assert_in_plugin(&site["frames"][0], &plugin);
        }
        assert_no_unknown_caller(&export);
    }
}

/// Each image is replaced within a millisecond or so.
#[test]
fn images_that_are_replaced_at_once_have_their_code_known() {
    let scratch = Scratch::new();
    let program = programs::build("execer.c", Variant::Default);
    run(&mut scratch.trace_program(&[], &program, &["12", "3", "48"])).assert_code(0);
    let export = scratch.export();
    export.assert_complete();
    let processes = export.list("processes");
    assert_eq!(processes.len(), 12);
    for process in processes {
        let allocators = process["allocators"].as_array().unwrap();
        assert!(
            allocators.iter().any(|path| path.as_str().unwrap().contains("libc.so")),
            "{process}"
        );
    }
    assert_no_unknown_caller(&export);
    let in_program = export.list("sites").iter().filter(|site| {
        site["frames"][0]["module"] == program.to_str().unwrap()
            && site["frames"][0]["function"].is_string()
    });
    assert!(in_program.count() >= 12, "each image allocates in its own code");
}
