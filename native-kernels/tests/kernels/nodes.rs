//! Products on workers of several nodes, which are made up: the bits are those that one worker computes.

use crate::support::{Random, bits, fill, read, run};
use plinth_kernels::{
    Activation, Buffer, Expert, Format, KernelSet, Linear, Mixture, Norm, Output, Program,
    Selection, Weights, Workers,
};
use std::sync::Arc;

/// Steps that prepare activations in each worker, and in a phase of their own.
const ROWS: [usize; 4] = [1, 6, 17, 40];

fn alone() -> Workers {
    Workers::new(1, &[]).unwrap()
}

/// Even nodes, uneven ones, the caller's not the first, one for each worker, and numbers with a gap: a node without
/// workers.
fn on_nodes() -> Vec<Workers> {
    let nodes = [&[0, 0, 1, 1][..], &[0, 0, 0, 1], &[4, 2, 2], &[5, 0, 3, 1]];
    nodes
        .map(|nodes| Workers::by_node(nodes.len(), &[], nodes).unwrap())
        .into()
}

/// Matrices that these workers pack, of the same random weights whoever they are.
struct Pack<'a> {
    set: &'a KernelSet,
    workers: &'a Workers,
    random: Random,
}

impl Pack<'_> {
    fn weights(&mut self, format: Format, rows: usize, cols: usize) -> Weights {
        let bytes = self.random.weights(format, rows, cols);
        let packed = self.set.pack(self.workers, format, rows, cols, &bytes);
        Weights {
            matrix: Arc::new(packed.unwrap()),
            bias: Some(self.random.floats(rows)),
        }
    }
}

/// The buffers that `describe` names, after steps of several sizes.
fn bits_of(
    workers: &Workers,
    describe: impl Fn(&mut Program, &mut Pack<'_>) -> (Vec<Buffer>, Vec<Buffer>),
) -> Vec<u32> {
    let set = KernelSet::bind(&Selection::best()).unwrap();
    let mut pack = Pack {
        set: &set,
        workers,
        random: Random::new(11),
    };
    let mut program = Program::new();
    let (inputs, outputs) = describe(&mut program, &mut pack);
    let mut found = Vec::new();
    for m in ROWS {
        for &buffer in inputs.iter().chain(&outputs) {
            let values = pack.random.floats(m * program.width(buffer));
            fill(&mut program, buffer, m, &values);
        }
        run(&mut program, &set, workers, m);
        for &buffer in &outputs {
            found.extend(bits(&read(&program, buffer, m)));
        }
    }
    found
}

fn norm(width: usize) -> Option<Norm> {
    let weight = (0..width).map(|i| 1.0 + i as f32 / 1000.0).collect();
    Some(Norm { weight, eps: 1e-5 })
}

/// Matrices of many panels and of one, of an odd number of them, with lanes that nothing is in.
#[test]
fn products_side_by_side_do_not_depend_on_nodes() {
    let describe = |program: &mut Program, pack: &mut Pack<'_>| {
        let k = 256;
        let from = program.buffer(k);
        let to = [1000, 48, 16, 333, 580].map(|n| program.buffer(n));
        let mut outputs = Vec::new();
        for (format, to) in [(Format::Q4_0, to[0]), (Format::F16, to[1])] {
            let weights = pack.weights(format, program.width(to), k);
            outputs.push(Output::Store { weights, to });
        }
        for (format, to) in [(Format::Q8_0, to[2]), (Format::Q4K, to[3])] {
            let weights = pack.weights(format, program.width(to), k);
            outputs.push(Output::Add { weights, to });
        }
        outputs.push(Output::Gated {
            gate: pack.weights(Format::Q4_0, 580, k),
            up: pack.weights(Format::Q8_0, 580, k),
            activation: Activation::Silu,
            to: to[4],
        });
        program.linear(Linear {
            from,
            norm: norm(k),
            outputs,
        });
        (vec![from], to.into())
    };
    let expected = bits_of(&alone(), describe);
    for workers in on_nodes() {
        assert!(bits_of(&workers, describe) == expected, "{workers:?}");
    }
}

#[test]
fn a_mixture_does_not_depend_on_nodes() {
    let describe = |program: &mut Program, pack: &mut Pack<'_>| {
        let (n, inner, experts) = (256, 352, 5);
        let [from, to] = [n; 2].map(|width| program.buffer(width));
        let logits = program.buffer(experts);
        let mut expert = |_| Expert {
            gate: pack.weights(Format::Q4_0, inner, n),
            up: pack.weights(Format::Q8_0, inner, n),
            down: pack.weights(Format::Q8_0, n, inner),
        };
        program.mixture(Mixture {
            from,
            norm: norm(n),
            logits,
            experts: (0..experts).map(&mut expert).collect(),
            used: 2,
            normalize: true,
            activation: Activation::Silu,
            to,
        });
        (vec![from, logits], vec![to])
    };
    let expected = bits_of(&alone(), describe);
    for workers in on_nodes() {
        assert!(bits_of(&workers, describe) == expected, "{workers:?}");
    }
}
