package linux

import (
	"errors"
	"strings"
	"testing"

	"vmscope/ksym"
	"vmscope/mem"
)

// TestKernelOf32Bits refuses what VMCOREINFO of a 32-bit kernel claims, by name.
func TestKernelOf32Bits(t *testing.T) {
	info, err := ksym.ParseVMCoreInfo([]byte("OSRELEASE=6.1.0-50-686-pae\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=deb1c000\nSYMBOL(_stext)=de000000\nCONFIG_X86_PAE=y\n\x00"))
	if err != nil {
		t.Fatal(err)
	}
	info.Places = []mem.PA{0x11a8000}
	_, err = new(finder).fromCoreInfo(info)
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), `release "6.1.0-50-686-pae": a kernel of 32 bits`) {
		t.Error(err)
	}
}
