//! The walker beside its peers, in one run: what Criterion says of each, and how they compare, measured in turns, in
//! `target/bench/report.json`.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};

mod contest;
mod report;

/// Pages of the range: 1 GiB.
const PAGES: u64 = 1 << 18;

/// The shortest time: what others do on the machine only ever adds.
fn best(times: &[f64]) -> f64 {
    times.iter().copied().fold(f64::INFINITY, f64::min)
}

fn main() {
    let in_order = contest::order(PAGES, false);
    let random = contest::order(PAGES, true);

    // `cargo test` runs benches too, to see that they work: then once is enough.
    let bench = std::env::args().any(|arg| arg == "--bench");
    let rounds = if bench { 41 } else { 1 };
    let mut entries = Vec::new();
    println!("nanoseconds per page, best of {rounds} rounds taken in turns");
    for row in contest::ROWS {
        let order = if row.random { &random } else { &in_order };
        let mut times = vec![Vec::new(); row.contestants.len()];
        for _ in 0..rounds {
            for ((_, run), times) in row.contestants.iter().zip(&mut times) {
                times.push(run(order).as_nanos() as f64 / PAGES as f64);
            }
        }
        print!("{:16}", row.name);
        let ours = times.first().map_or(f64::NAN, |times| best(times));
        for ((name, _), times) in row.contestants.iter().zip(&times) {
            let best = best(times);
            print!("  {name} {best:6.2}");
            if *name != "ours" {
                let name = format!("walker.{}.vs_{name}", row.name);
                entries.push(report::Entry::new(name, ours / best, "ratio"));
            }
        }
        println!();
    }
    if !bench {
        return;
    }
    report::merge(&entries).expect("the report can be written");

    let mut criterion = Criterion::default()
        .configure_from_args()
        .sample_size(15)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    for row in contest::ROWS {
        let order = if row.random { &random } else { &in_order };
        let mut group = criterion.benchmark_group(row.name);
        group.throughput(Throughput::Elements(PAGES));
        for (name, run) in row.contestants {
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                bencher.iter_custom(|n| (0..n).map(|_| run(order)).sum());
            });
        }
        group.finish();
    }
    criterion.final_summary();
}
