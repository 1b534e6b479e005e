//! No file, however wrong, makes detection panic, hang or claim the impossible.

use std::fs;

use proptest::prelude::*;

use plinth_kernels::detect::{Source, detect};
use plinth_platform::facts::Facts;

use crate::machines::{self, Machine, write};

/// Small machines that between them have every kind of file.
fn machines() -> [Machine; 3] {
    [
        machines::zen4_vm(),
        machines::docker_v1_on_xeon(),
        pod_on_xeon(),
    ]
}

fn pod_on_xeon() -> Machine {
    let group = "sys/fs/cgroup/pods/a";
    machines::xeon_2s()
        .cgroup2("/pods/a")
        .file(&format!("{group}/cpu.max"), "765000 100000\n")
        .file(&format!("{group}/memory.max"), "17179869184\n")
        .file(&format!("{group}/memory.high"), "max\n")
        .file(&format!("{group}/memory.current"), "1\n")
        .file(&format!("{group}/memory.stat"), "inactive_file 0\n")
        .file(&format!("{group}/cpuset.cpus.effective"), "0-7\n")
        .file(&format!("{group}/cpuset.mems.effective"), "0-1\n")
        .file(
            "proc/self/limits",
            "Max address space         1073741824           unlimited            bytes\n",
        )
}

fn check(facts: &Facts) -> Result<(), TestCaseError> {
    let host = &facts.host;
    let allowed = host.logical.iter().filter(|cpu| cpu.allowed).count();
    prop_assert!(host.budget.threads >= 1);
    prop_assert!(
        host.budget.threads as usize <= allowed.max(1),
        "{:?}",
        host.budget
    );
    prop_assert!(allowed >= 1);
    prop_assert!(!host.budget.threads_limit.is_empty() && !host.budget.memory_limit.is_empty());
    prop_assert!(!host.budget.memory_limit.contains(char::is_control));
    prop_assert!(host.isa.is_sorted());
    prop_assert!(host.numa.iter().any(|node| node.visible));
    prop_assert!(host.numa.iter().all(|node| node.available <= node.total));
    prop_assert!(host.logical.is_sorted_by_key(|cpu| cpu.id));
    Ok(())
}

/// What a corrupt or hostile file may hold: noise, and the right words with absurd numbers.
fn content(original: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let noise = proptest::collection::vec(any::<u8>(), 0..200);
    let absurd = prop_oneof![
        Just("0"),
        Just("-1"),
        Just("4294967295"),
        Just("18446744073709551615"),
        Just("18446744073709551616"),
        Just("0-4294967295"),
        Just("/../../etc"),
        Just("\\012"),
        Just("é"),
        Just(""),
    ];
    let text = String::from_utf8_lossy(&original).into_owned();
    let words = text
        .split_inclusive([' ', '\n', '\t', ',', '-', ':'])
        .count()
        .max(1);
    let replaced = (0..words, absurd).prop_map(move |(word, absurd)| {
        let parts = text
            .split_inclusive([' ', '\n', '\t', ',', '-', ':'])
            .enumerate();
        let replace = |(at, part): (usize, &str)| {
            let end = part.len() - part.chars().next_back().map_or(0, char::len_utf8);
            if at == word {
                format!("{absurd}{}", &part[end..])
            } else {
                part.to_owned()
            }
        };
        parts.map(replace).collect::<String>().into_bytes()
    });
    prop_oneof![noise, replaced]
}

fn machine_and_corruption() -> impl Strategy<Value = (usize, String, Vec<u8>)> {
    let files: Vec<(usize, String)> = machines()
        .iter()
        .enumerate()
        .flat_map(|(at, machine)| {
            machine
                .paths()
                .into_iter()
                .map(move |path| (at, path.to_owned()))
                .collect::<Vec<_>>()
        })
        .collect();
    proptest::sample::select(files).prop_flat_map(|(at, path)| {
        let original = machines()[at].content(&path).to_vec();
        (Just(at), Just(path), content(original))
    })
}

#[test]
fn any_bytes_in_any_file() {
    let machines = machines();
    let roots = machines.each_ref().map(Machine::write);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(1000));
    let outcome = runner.run(&machine_and_corruption(), |(at, path, bytes)| {
        write(roots[at].path(), &path, &bytes);
        let facts = detect(&Source::root(roots[at].path()));
        write(roots[at].path(), &path, machines[at].content(&path));
        check(&facts)
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn every_file_missing_or_replaced_by_a_folder() {
    for machine in machines() {
        let tree = machine.write();
        for path in machine.paths() {
            let file = tree.path().join(path);
            fs::remove_file(&file).expect("the file is there");
            check(&detect(&Source::root(tree.path()))).expect("facts without the file");
            fs::create_dir(&file).expect("a folder");
            check(&detect(&Source::root(tree.path()))).expect("facts with a folder for the file");
            fs::remove_dir(&file).expect("the folder is there");
            write(tree.path(), path, machine.content(path));
        }
    }
}
