//! `setup`: what the other tasks need from the machine; says what is missing, and installs it when asked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

use crate::build::{release_directory, workspace};

/// A program, the Debian package that has it, and what it is for.
struct Tool {
    program: &'static str,
    package: &'static str,
    purpose: &'static str,
}

/// What running a guest takes.
const GUEST_TOOLS: &[Tool] = &[
    Tool {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
        purpose: "runs the guests",
    },
    Tool {
        program: "nft",
        package: "nftables",
        purpose: "packet rules of the data plane",
    },
    Tool {
        program: "mke2fs",
        package: "e2fsprogs",
        purpose: "root file systems, without mounting",
    },
    Tool {
        program: "busybox",
        package: "busybox-static",
        purpose: "the web server of the demo's image",
    },
];

/// What the rivals of the benches take besides.
const RIVAL_TOOLS: &[Tool] = &[Tool {
    program: "qemu-img",
    package: "qemu-utils",
    purpose: "the disk that savevm writes to",
}];

/// What the tests take besides.
const TEST_TOOLS: &[Tool] = &[
    Tool {
        program: "ip",
        package: "iproute2",
        purpose: "namespaces that the tests look into from outside",
    },
    Tool {
        program: "conntrack",
        package: "conntrack",
        purpose: "a second reader of the kernel's flows",
    },
    Tool {
        program: "cpio",
        package: "cpio",
        purpose: "a second reader of the archives that we write",
    },
];

/// The package whose dependency is the present cloud kernel.
const KERNEL_METAPACKAGE: &str = "linux-image-cloud-amd64";

/// The modules of a guest and what they depend on.
pub(crate) const GUEST_MODULES: &[&str] = &[
    "virtio_ring",
    "virtio",
    "virtio_mmio",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_console",
    "virtio_balloon",
    "virtio_rng",
    "rng_core",
    "overlay",
];

/// What a task needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Guests.
    Guests,
    /// Guests, and the rivals that they are compared with.
    Rivals,
    /// Guests, and what the tests check ours against.
    Tests,
}

/// A kernel for guests, in the layout that the daemon looks for below `guest/` in its data directory:
/// `vmlinuz`, `release` and `modules/*.ko`. Nothing of it is installed.
#[derive(Debug, Clone)]
pub(crate) struct GuestKernel {
    /// The directory.
    pub directory: PathBuf,
    /// Its release, such as 6.1.0-56-cloud-amd64.
    pub release: String,
}

impl GuestKernel {
    /// The kernel image.
    pub(crate) fn image(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// The modules, unordered.
    pub(crate) fn modules(&self) -> PathBuf {
        self.directory.join("modules")
    }
}

/// Says what is missing; installs it when `install` is set.
pub(crate) fn run(install: bool) -> Result<ExitCode> {
    if install {
        ensure_ready(Need::Rivals)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut complete = true;
    for tool in GUEST_TOOLS.iter().chain(RIVAL_TOOLS).chain(TEST_TOOLS) {
        let found = find_program(tool.program);
        let what = found.as_ref().map_or_else(
            || format!("missing: apt-get install {}", tool.package),
            |path| path.display().to_string(),
        );
        println!("{:20} {} ({})", tool.program, what, tool.purpose);
        complete &= found.is_some();
    }
    match cached_kernel()? {
        Some(kernel) => println!("{:20} {}", "guest kernel", kernel.directory.display()),
        None => {
            println!(
                "{:20} missing: apt-get download of what {KERNEL_METAPACKAGE} depends on",
                "guest kernel"
            );
            complete = false;
        }
    }
    if !complete {
        println!("setup: `cargo xtask setup --install` installs what is missing");
    }
    Ok(if complete {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Installs what is missing, saying what, and returns the kernel for guests.
pub(crate) fn ensure_ready(need: Need) -> Result<GuestKernel> {
    let more = match need {
        Need::Guests => &[][..],
        Need::Rivals => RIVAL_TOOLS,
        Need::Tests => TEST_TOOLS,
    };
    let missing: Vec<&Tool> = GUEST_TOOLS
        .iter()
        .chain(more)
        .filter(|tool| find_program(tool.program).is_none())
        .collect();
    if !missing.is_empty() {
        let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
        for tool in &missing {
            println!("setup: {} is missing ({})", tool.program, tool.purpose);
        }
        ensure!(is_root(), "installing {} takes root", packages.join(" "));
        println!("setup: installing {}", packages.join(" "));
        update_lists_once(packages.first().copied().unwrap_or(KERNEL_METAPACKAGE))?;
        let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
        arguments.extend(packages);
        apt_get(&arguments, &workspace())?;
    }
    for tool in GUEST_TOOLS.iter().chain(more) {
        ensure!(
            find_program(tool.program).is_some(),
            "{} did not bring {}",
            tool.package,
            tool.program
        );
    }
    if let Some(kernel) = cached_kernel()? {
        return Ok(kernel);
    }
    download_kernel()
}

/// Whether this process may do what guests need.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The program on the path, or in the directories that only root's path has.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(extra)
        .map(|directory| directory.join(name))
        .find(|p| p.is_file())
}

fn kernel_cache() -> PathBuf {
    release_directory().join("../guest-kernel")
}

/// The kernel that an earlier run unpacked.
fn cached_kernel() -> Result<Option<GuestKernel>> {
    let directory = kernel_cache().join("ready");
    if !directory.join("vmlinuz").is_file() {
        return Ok(None);
    }
    let path = directory.join("release");
    let release = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(Some(GuestKernel {
        directory,
        release: release.trim().to_owned(),
    }))
}

/// The release of an unpacked package and the directory of its modules.
fn find_release(unpacked: &Path) -> Result<Option<(String, PathBuf)>> {
    let boot = unpacked.join("boot");
    if !boot.is_dir() {
        return Ok(None);
    }
    for entry in fs::read_dir(&boot).with_context(|| format!("listing {}", boot.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let Some(release) = name.strip_prefix("vmlinuz-") else {
            continue;
        };
        // Since Debian 13 the package has usr/lib instead of lib.
        for lib in ["lib/modules", "usr/lib/modules"] {
            let modules = unpacked.join(lib).join(release);
            if modules.is_dir() {
                return Ok(Some((release.to_owned(), modules)));
            }
        }
    }
    Ok(None)
}

/// Puts the kernel and the modules that guests need in the layout of [`GuestKernel`], complete or not at all.
fn lay_out(unpacked: &Path, ready: &Path) -> Result<GuestKernel> {
    let (release, tree) = find_release(unpacked)?
        .with_context(|| format!("{} holds no kernel with modules", unpacked.display()))?;
    let staging = ready.with_extension("partial");
    let _ = fs::remove_dir_all(&staging);
    let place = staging.join("modules");
    fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
    let mut open = vec![tree];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).with_context(|| format!("listing {}", directory.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if let Some(name) = path
                .file_name()
                .filter(|name| is_guest_module(&name.to_string_lossy()))
            {
                fs::copy(&path, place.join(name)).with_context(|| format!("copying {}", path.display()))?;
            }
        }
    }
    fs::copy(
        unpacked.join("boot").join(format!("vmlinuz-{release}")),
        staging.join("vmlinuz"),
    )
    .context("copying the kernel image")?;
    fs::write(staging.join("release"), format!("{release}\n")).context("writing the release")?;
    fs::rename(&staging, ready).with_context(|| format!("naming {}", ready.display()))?;
    Ok(GuestKernel {
        directory: ready.to_owned(),
        release,
    })
}

/// Whether guests may need this module file; what they really load is the daemon's to say.
fn is_guest_module(name: &str) -> bool {
    let Some(stem) = name.strip_suffix(".ko") else {
        return false;
    };
    GUEST_MODULES.contains(&stem.replace('-', "_").as_str())
}

/// Downloads the cloud kernel's package and unpacks it beside: nothing goes to /boot.
fn download_kernel() -> Result<GuestKernel> {
    let cache = kernel_cache();
    fs::create_dir_all(&cache).with_context(|| format!("making {}", cache.display()))?;
    update_lists_once(KERNEL_METAPACKAGE)?;
    let package = kernel_package()?;
    println!("setup: downloading {package} for guests; it is unpacked, not installed");
    apt_get(&["download", &package], &cache)?;
    let archive = fs::read_dir(&cache)
        .with_context(|| format!("listing {}", cache.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| {
            let name = path
                .file_name()
                .map(|n| n.to_string_lossy().into_owned())
                .unwrap_or_default();
            name.starts_with(&package) && path.extension().is_some_and(|extension| extension == "deb")
        })
        .with_context(|| format!("apt-get download left no {package}*.deb in {}", cache.display()))?;
    let partial = cache.join("partial");
    let _ = fs::remove_dir_all(&partial);
    let status = Command::new("dpkg-deb")
        .arg("-x")
        .args([&archive, &partial])
        .status()
        .context("starting dpkg-deb")?;
    ensure!(
        status.success(),
        "unpacking {} failed: {status}",
        archive.display()
    );
    let kernel = lay_out(&partial, &cache.join("ready"))?;
    let _ = fs::remove_dir_all(&partial);
    Ok(kernel)
}

/// The package that the metapackage depends on.
fn kernel_package() -> Result<String> {
    let output = Command::new("apt-cache")
        .args(["depends", KERNEL_METAPACKAGE])
        .env("LC_ALL", "C")
        .output()
        .context("starting apt-cache")?;
    parse_depends(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("apt-cache does not say what {KERNEL_METAPACKAGE} depends on"))
}

/// The first package in the answer of `apt-cache depends`.
fn parse_depends(text: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with("linux-image-"))
        .map(str::to_owned)
}

/// Fetches the lists of packages unless they know `package` already.
fn update_lists_once(package: &str) -> Result<()> {
    let known = Command::new("apt-cache")
        .args(["show", "--no-all-versions", package])
        .output()
        .is_ok_and(|output| output.status.success() && !output.stdout.is_empty());
    if known {
        return Ok(());
    }
    println!("setup: fetching the lists of packages");
    apt_get(&["update"], &workspace())
}

fn apt_get(arguments: &[&str], directory: &Path) -> Result<()> {
    let log = release_directory().join("../apt.log");
    let output = fs::File::options()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("opening {}", log.display()))?;
    let status = Command::new("apt-get")
        .args([
            "-q",
            "-o",
            "DPkg::Lock::Timeout=120",
            "-o",
            "APT::Sandbox::User=root",
        ])
        .args(arguments)
        .current_dir(directory)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout(output.try_clone().context("sharing the log")?)
        .stderr(output)
        .status()
        .context("starting apt-get")?;
    if !status.success() {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        for line in lines.iter().skip(lines.len().saturating_sub(15)) {
            eprintln!("apt-get: {line}");
        }
        bail!(
            "apt-get {} failed: {status}; see {}",
            arguments.join(" "),
            log.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_what_the_metapackage_depends_on() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(
            parse_depends(text).as_deref(),
            Some("linux-image-6.1.0-56-cloud-amd64")
        );
        assert_eq!(parse_depends("linux-image-cloud-amd64\n"), None);
    }

    #[test]
    fn a_kernel_is_laid_out_with_the_modules_of_guests_only() {
        let scratch = tempfile::tempdir().unwrap();
        let (unpacked, ready) = (scratch.path().join("unpacked"), scratch.path().join("ready"));
        assert!(find_release(&unpacked).unwrap().is_none());
        fs::create_dir_all(unpacked.join("boot")).unwrap();
        fs::write(unpacked.join("boot/vmlinuz-6.1.0-1"), "kernel").unwrap();
        assert!(find_release(&unpacked).unwrap().is_none());
        let tree = unpacked.join("usr/lib/modules/6.1.0-1/kernel/drivers");
        fs::create_dir_all(&tree).unwrap();
        for name in ["virtio-rng.ko", "nvme.ko", "virtio_blk.ko.xz"] {
            fs::write(tree.join(name), "module").unwrap();
        }
        let kernel = lay_out(&unpacked, &ready).unwrap();
        assert_eq!(kernel.release, "6.1.0-1");
        assert!(kernel.image().is_file());
        let modules: Vec<_> = fs::read_dir(kernel.modules())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(modules, ["virtio-rng.ko"]);
    }
}
