//! How this computer is, for the relay and for its users: processors, memory, disks, GPUs.
//!
//! [`Sensors`] is what a client asks at every heartbeat; it must answer at once. [`Computer`] reads
//! the machine in a thread of its own, since some figures take their time.

use belay_protocol::vitals::Vitals;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use sysinfo::{Component, Components, Disk, Disks, Gpu, Gpus, System};

/// How often the machine is read.
const EVERY: Duration = Duration::from_secs(2);

/// Tells how a computer is.
pub trait Sensors: Send + Sync + std::fmt::Debug {
    /// The latest figures, without waiting. Those of requests are not asked for.
    fn vitals(&self) -> Vitals;
}

/// This computer. Read until it is dropped.
#[derive(Debug)]
pub struct Computer {
    latest: Arc<Mutex<Vitals>>,
    /// Dropped with it: the thread then ends.
    _stop: mpsc::Sender<()>,
}

impl Computer {
    /// Begins to read. Errors: no thread.
    pub fn watch() -> std::io::Result<Self> {
        let latest = Arc::new(Mutex::new(Vitals::default()));
        let (stop, stopped) = mpsc::channel();
        let publish = Arc::clone(&latest);
        std::thread::Builder::new().name("belay-vitals".into()).spawn(move || {
            let mut machine = Machine::new();
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                let vitals = machine.read();
                *publish.lock().unwrap_or_else(PoisonError::into_inner) = vitals;
            }
        })?;
        Ok(Self { latest, _stop: stop })
    }
}

impl Sensors for Computer {
    fn vitals(&self) -> Vitals {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the machine can be asked. `None`: it does not tell.
struct Machine {
    system: Option<System>,
    disks: Option<Disks>,
    components: Option<Components>,
    gpus: Option<Gpus>,
}

impl Machine {
    fn new() -> Self {
        let mut machine = Self {
            system: System::new().ok(),
            disks: Disks::new_with_refreshed_list().ok(),
            components: Components::new_with_refreshed_list().ok(),
            gpus: Gpus::new_with_refreshed_list().ok(),
        };
        // The load is that between two readings.
        if let Some(system) = &mut machine.system {
            system.refresh_cpu_usage();
        }
        machine
    }

    fn read(&mut self) -> Vitals {
        let mut vitals = Vitals::default();
        if let Some(system) = &mut self.system {
            system.refresh_cpu_usage();
            system.refresh_memory();
            vitals.cpu_permille = Some((system.global_cpu_usage() * 10.0) as u32);
            vitals.memory_permille = permille(system.used_memory(), system.total_memory());
        }
        if let Some(disks) = &mut self.disks {
            disks.refresh(false);
            let used = |disk: &Disk| disk.total_space().saturating_sub(disk.available_space());
            vitals.disk_permille = disks.iter().filter_map(|disk| permille(used(disk), disk.total_space())).max();
        }
        if let Some(gpus) = &mut self.gpus {
            gpus.refresh(true);
            vitals.gpu_permille = gpus.iter().filter_map(Gpu::usage).map(|percent| (percent * 10.0) as u32).max();
            let memory = |gpu: &Gpu| permille(gpu.used_memory()?, gpu.total_memory()?);
            vitals.gpu_memory_permille = gpus.iter().filter_map(memory).max();
        }
        if let Some(components) = &mut self.components {
            components.refresh(false);
            let gpus = components.iter().filter(|component| is_gpu(component.label()));
            let celsius = gpus.filter_map(Component::temperature).map(|celsius| celsius.max(0.0) as u32);
            vitals.gpu_celsius = celsius.max();
        }
        vitals
    }
}

/// Sensors are named after their drivers.
fn is_gpu(label: &str) -> bool {
    const DRIVERS: [&str; 5] = ["amdgpu", "radeon", "nouveau", "nvidia", "gpu"];
    let label = label.to_ascii_lowercase();
    DRIVERS.iter().any(|driver| label.starts_with(driver))
}

fn permille(part: u64, whole: u64) -> Option<u32> {
    (whole > 0).then(|| u32::try_from(u128::from(part) * 1000 / u128::from(whole)).unwrap_or(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_tells_its_processors_memory_and_disks() {
        let mut machine = Machine::new();
        let vitals = machine.read();
        assert!(vitals.cpu_permille.is_some_and(|load| load <= 1000), "{vitals:?}");
        assert!(vitals.memory_permille.is_some_and(|used| (1..=1000).contains(&used)), "{vitals:?}");
        assert!(vitals.disk_permille.is_none_or(|used| used <= 1000), "{vitals:?}");
        assert_eq!((permille(1, 3), permille(3, 3), permille(1, 0)), (Some(333), Some(1000), None));
        assert!(is_gpu("amdgpu edge") && !is_gpu("coretemp Core 0"));
    }
}
