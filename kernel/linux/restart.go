package linux

// stateLayout is enum system_states (include/linux/kernel.h): what is below
// SYSTEM_RUNNING is on the way to it, what is above SYSTEM_RESTART a suspend.
type stateLayout struct {
	Running  uint64 `c:"enum(SYSTEM_RUNNING)"`
	Halt     uint64 `c:"enum(SYSTEM_HALT)"`
	PowerOff uint64 `c:"enum(SYSTEM_POWER_OFF)"`
	Restart  uint64 `c:"enum(SYSTEM_RESTART)"`
}

// State says how far the kernel is with its machine: "booting", "running",
// "panicked", "halted", "powered off", "restarting", "suspending". Its memory can
// be read in each.
func (v *View) State() (string, error) {
	// kernel/panic.c: the CPU that panics, -1 as long as none does.
	if at, err := v.Symbol("panic_cpu"); err == nil {
		if n, err := v.Mem.Uint32(at); err == nil && int32(n) >= 0 {
			return "panicked", nil
		}
	}
	if v.Restarts() != "" {
		return "restarting", nil
	}
	l, err := layout[stateLayout](v.Kernel)
	if err != nil {
		return "", err
	}
	at, err := v.Symbol("system_state")
	if err != nil {
		return "", err
	}
	n, err := v.Mem.Uint32(at)
	switch s := uint64(n); {
	case err != nil:
		return "", err
	case s < l.Running:
		return "booting", nil
	case s == l.Running:
		return "running", nil
	case s == l.Halt:
		return "halted", nil
	case s == l.PowerOff:
		return "powered off", nil
	case s == l.Restart:
		return "restarting", nil
	}
	return "suspending", nil
}

// Restarts says by what the kernel has given the machine up, or is about to: "" if it has not. From then on another
// kernel, or firmware, may run, while this one's memory stays as it was.
func (v *View) Restarts() string {
	// kernel/kexec_core.c kernel_kexec: set before anything is shut down, and never cleared.
	if at, err := v.Symbol("kexec_in_progress"); err == nil {
		var b [1]byte
		if _, err := v.Mem.Read(b[:], at); err == nil && b[0] == 1 {
			return "kexec"
		}
	}
	if l, err := layout[stateLayout](v.Kernel); err == nil {
		if at, err := v.Symbol("system_state"); err == nil {
			if n, err := v.Mem.Uint32(at); err == nil && uint64(n) == l.Restart {
				return "a restart" // kernel/reboot.c kernel_restart_prepare
			}
		}
	}
	return ""
}
