package dump

import (
	"bytes"
	"fmt"
)

// foreign recognises formats that are not raw RAM and not ELF by their first
// bytes, so that they are not taken for RAM full of noise.
func foreign(head []byte) error {
	const elf = "write an ELF one with `dump-guest-memory FILE` (no -z, -l, -s) or `virsh dump --memory-only --format elf`"
	const disk = "a disk is not memory: give the memory of the machine"
	for _, f := range [...]struct {
		off        int
		magic      string
		name, todo string
	}{
		{0, "DISKDUMP", "a diskdump-compressed dump", elf},
		{0, "LibvirtQemudPart", "an unfinished libvirt save image", "use `virsh dump --memory-only --format elf`"},
		{0, "MDMP", "a Windows minidump", elf},
		{0, "\x7fVirtualBox SavedState V", "a saved state of VirtualBox", "start the machine and write a core: VBoxManage debugvm NAME dumpvmcore --filename FILE"},
		{0, "KDMV", "a VMware disk", disk},
		{64, "\x7f\x10\xda\xbe", "a VirtualBox disk", disk},
		{0, "vhdxfile", "a Hyper-V disk", disk},
		{0, "7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first: 7z x"},
		{0, "PK\x03\x04", "a zip archive", "unpack it first: unzip"},
		{257, "ustar", "a tar archive", "unpack it first: tar -xf"},
	} {
		if len(head) > f.off && bytes.HasPrefix(head[f.off:], []byte(f.magic)) {
			return fmt.Errorf("%w: it is %s; %s", ErrFormat, f.name, f.todo)
		}
	}
	return nil
}
