package linux

type restartLayout struct {
	Restart uint64 `c:"enum(SYSTEM_RESTART)"` // enum system_states, include/linux/kernel.h
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
	if l, err := layout[restartLayout](v.Kernel); err == nil {
		if at, err := v.Symbol("system_state"); err == nil {
			if n, err := v.Mem.Uint32(at); err == nil && uint64(n) == l.Restart {
				return "a restart" // kernel/reboot.c kernel_restart_prepare
			}
		}
	}
	return ""
}
