package ksym

// arches names architectures by the prefix that their kernels give to the
// handlers of system calls (arch/*/include/asm/syscall_wrapper.h).
var arches = []struct{ name, prefix string }{
	{"amd64", "__x64_sys_"},
	{"arm64", "__arm64_sys_"},
}

// Arch is the architecture in Go's words that the names of the symbols speak
// of, "" where they do not tell: so on 32-bit kernels.
func (t *Table) Arch() string {
	for _, a := range arches {
		// Present in every kernel, whatever its configuration.
		if _, ok := t.find(a.prefix + "read"); ok {
			return a.name
		}
	}
	return ""
}
