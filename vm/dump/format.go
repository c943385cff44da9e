package dump

import (
	"bytes"
	"fmt"
)

// foreign recognises formats that are not raw RAM and not ELF by their first
// bytes, so that they are not taken for RAM full of noise.
func foreign(head []byte) error {
	const elf = "write an ELF one with `dump-guest-memory FILE` (no -z, -l, -s) or `virsh dump --memory-only --format elf`"
	for _, f := range [...]struct {
		off        int
		magic      string
		name, todo string
	}{
		{0, "DISKDUMP", "a diskdump-compressed dump", elf},
		{0, "LibvirtQemudPart", "an unfinished libvirt save image", "use `virsh dump --memory-only --format elf`"},
		{0, "MDMP", "a Windows minidump", elf},
		{0, "\x1f\x8b", "compressed with gzip", "unpack it first: gunzip"},
		{0, "\xfd7zXZ\x00", "compressed with xz", "unpack it first: unxz"},
		{0, "\x04\x22\x4d\x18", "compressed with lz4", "unpack it first: unlz4"},
		{0, "BZh", "compressed with bzip2", "unpack it first: bunzip2"},
		{0, "PK\x03\x04", "a zip archive", "unpack it first: unzip"},
		{257, "ustar", "a tar archive", "unpack it first: tar -xf"},
	} {
		if len(head) > f.off && bytes.HasPrefix(head[f.off:], []byte(f.magic)) {
			return fmt.Errorf("%w: it is %s; %s", ErrFormat, f.name, f.todo)
		}
	}
	return nil
}
