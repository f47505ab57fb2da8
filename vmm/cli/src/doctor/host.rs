//! What /proc, /sys and the process's limits tell of the host, besides its hypervisor.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use skep_config::Size;
use skep_hypervisor::report::{Finding, Verdict};

use super::io_uring;

#[cfg(test)]
#[path = "host_test.rs"]
mod test;

/// The oldest kernel that skep is made for.
const OLDEST_KERNEL: (u32, u32) = (5, 10);
/// Queues of io_uring count as locked memory on kernels before 5.12; with less than this, few of them will do.
const LITTLE_LOCKED: Size = Size::mib(64);
/// A machine takes a few descriptors for each vCPU and each queue.
const FEW_FILES: u64 = 1024;

/// What was found under `root`, which is `/` but for tests.
pub(super) fn findings(root: &Path) -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(root.join(path)).ok();
    let mut findings = Vec::new();
    findings.extend(read("proc/sys/kernel/osrelease").map(|text| kernel(text.trim())));
    findings.extend(read("proc/meminfo").and_then(|text| memory(&text)));
    findings.push(huge_pages(&root.join("sys/kernel/mm/hugepages")));
    findings.extend(read("sys/kernel/mm/transparent_hugepage/enabled").map(|text| transparent(&text)));
    findings.push(locked_memory(getrlimit(Resource::Memlock).current));
    findings.push(open_files(getrlimit(Resource::Nofile).current));
    findings.push(io_uring::finding(read("proc/sys/kernel/io_uring_disabled").as_deref()));
    findings
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let version = numbers.next().and_then(Result::ok).zip(numbers.next().and_then(Result::ok));
    let text = format!("Linux {release}");
    match version {
        Some(version) if version < OLDEST_KERNEL => {
            let (major, minor) = OLDEST_KERNEL;
            Finding::new("kernel", text, Verdict::Limited).mend(format!("Linux {major}.{minor} or later"))
        }
        _ => Finding::new("kernel", text, Verdict::Ok),
    }
}

fn memory(meminfo: &str) -> Option<Finding> {
    let value = |key: &str| -> Option<Size> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(Size::mib(kib >> 10))
    };
    let (total, free) = (value("MemTotal")?, value("MemAvailable")?);
    Some(Finding::new("memory", format!("{total}, of which {free} are available"), Verdict::Ok))
}

/// `folder` has one folder for each size, `hugepages-2048kB`.
fn huge_pages(folder: &Path) -> Finding {
    const TOPIC: &str = "huge pages";
    let number = |path: &Path| -> Option<u64> { fs::read_to_string(path).ok()?.trim().parse().ok() };
    let mut sizes: Vec<(Size, u64, u64)> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let kib: u64 = path.file_name()?.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            Some((Size::kib(kib), number(&path.join("free_hugepages"))?, number(&path.join("nr_hugepages"))?))
        })
        .collect();
    sizes.sort();
    let Some((smallest, ..)) = sizes.first() else {
        let mend = "a kernel with CONFIG_HUGETLBFS, for `--memory SIZE,hugepages=SIZE`";
        return Finding::new(TOPIC, "the kernel has none", Verdict::Missing).mend(mend);
    };
    let set_aside: Vec<_> = sizes.iter().filter(|(_, _, all)| *all > 0).collect();
    if set_aside.is_empty() {
        let names: Vec<_> = sizes.iter().map(|(size, ..)| size.to_string()).collect();
        let kib = smallest.bytes() >> 10;
        let mend = format!(
            "echo COUNT | sudo tee /sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages, for `--memory SIZE,hugepages={smallest}`"
        );
        return Finding::new(TOPIC, format!("none are set aside (sizes: {})", names.join(", ")), Verdict::Missing)
            .mend(mend);
    }
    let rows: Vec<_> =
        set_aside.iter().map(|(size, free, all)| format!("{free} of {all} of {size} are free")).collect();
    Finding::new(TOPIC, rows.join(", "), Verdict::Ok)
}

/// The choice in force stands in brackets: `always [madvise] never`.
fn transparent(text: &str) -> Finding {
    let choice =
        text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("unknown", |(choice, _)| choice);
    let finding = |verdict| Finding::new("transparent huge pages", choice, verdict);
    match choice {
        "never" => {
            finding(Verdict::Limited).mend("echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled")
        }
        _ => finding(Verdict::Ok),
    }
}

fn locked_memory(limit: Option<u64>) -> Finding {
    const TOPIC: &str = "locked memory";
    match limit {
        None => Finding::new(TOPIC, "no limit", Verdict::Ok),
        Some(bytes) if bytes < LITTLE_LOCKED.bytes() => {
            let mend = "ulimit -l unlimited, or LimitMEMLOCK=infinity in the service's unit; disks want it on kernels before 5.12";
            Finding::new(TOPIC, format!("at most {}", Size(bytes)), Verdict::Limited).mend(mend)
        }
        Some(bytes) => Finding::new(TOPIC, format!("at most {}", Size(bytes)), Verdict::Ok),
    }
}

fn open_files(limit: Option<u64>) -> Finding {
    let text = limit.map_or("no limit".to_owned(), |limit| format!("at most {limit}"));
    let finding = |verdict| Finding::new("open files", text, verdict);
    match limit {
        Some(limit) if limit < FEW_FILES => {
            finding(Verdict::Limited).mend(format!("ulimit -n {FEW_FILES}, for machines with many CPUs or queues"))
        }
        _ => finding(Verdict::Ok),
    }
}
