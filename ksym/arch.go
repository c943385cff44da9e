package ksym

// arches names architectures by a symbol that each of their kernels has, whatever
// its configuration: the handler of a system call with the prefix that they have
// there (arch/*/include/asm/syscall_wrapper.h), or what its ABI asks for.
var arches = []struct{ name, symbol string }{
	{"amd64", "__x64_sys_read"},
	{"arm64", "__arm64_sys_read"},
	{"arm", "__aeabi_lmul"}, // arch/arm/lib/muldi3.S
}

// Arch is the architecture in Go's words that the names of the symbols speak
// of, "" where they do not tell: so on x86 kernels of 32 bits.
func (t *Table) Arch() string {
	for _, a := range arches {
		if _, ok := t.find(a.symbol); ok {
			return a.name
		}
	}
	return ""
}
