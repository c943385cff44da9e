package qemu

import (
	"slices"
	"testing"

	"vmscope/vm"
)

func TestParseHVA(t *testing.T) {
	if v, err := parseHVA("Host virtual address for 0x0 (pc.ram) is 0x7f7453e00000\r\n"); v != 0x7f7453e00000 || err != nil {
		t.Error(v, err)
	}
	for _, bad := range []string{"", "No memory is mapped at address 0x0", "Host virtual address for 0x0 (x) is 0xzz"} {
		if _, err := parseHVA(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

const someRegisters = `
CPU#0
RAX=ffffffff81c0d4a0 RBX=0000000000000000 RCX=0000000000000000 RDX=4000000000000000
RSI=0000000000000087 RDI=0000000000000001 RBP=0000000000000000 RSP=ffffffff82c03e88
RIP=ffffffff81c0da1b RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
R8 =0000000000000008 R9 =0000000000000009 R10=0000000000000010 R11=0000000000000000
ES =0000 0000000000000000 ffffffff 00c00000
CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
SS =0018 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]
GS =0000 ffff88801f600000 ffffffff 00c00000
GDT=     fffffe0000001000 0000007f
IDT=     fffffe0000000000 00000fff
CR0=80050033 CR2=0000000000000000 CR3=0000000002c0a000 CR4=000006f0
EFER=0000000000000d01
CPU#1
EAX=00000000 EBX=00000000
ESI=00000000 EDI=00000000 EBP=00000000 ESP=00006f94
EIP=0000b7b9 EFL=00000246 [---Z-P-] CPL=0
CR0=00000010 CR2=00000000 CR3=00000000 CR4=00000000
`

func TestParseRegisters(t *testing.T) {
	got, err := parseRegisters(someRegisters)
	want := []vm.Registers{
		{
			RIP: 0xffffffff81c0da1b, RSP: 0xffffffff82c03e88, RFLAGS: 0x246, CR0: 0x80050033, CR3: 0x2c0a000, CR4: 0x6f0, EFER: 0xd01,
			GSBase: 0xffff88801f600000, GDTBase: 0xfffffe0000001000, IDTBase: 0xfffffe0000000000, Valid: true,
			CS: 0x10, SS: 0x18, General: [16]uint64{0: 0xffffffff81c0d4a0, 2: 1 << 62, 4: 0xffffffff82c03e88, 6: 0x87, 7: 1, 8: 8, 9: 9, 10: 0x10},
		},
		{RIP: 0xb7b9, RSP: 0x6f94, RFLAGS: 0x246, CR0: 0x10, Valid: true, General: [16]uint64{4: 0x6f94}},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "nothing", "CPU#0\nCR3=xyz"} {
		if _, err := parseRegisters(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func FuzzRegisters(f *testing.F) {
	f.Add(someRegisters)
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := parseRegisters(s); (len(r) == 0) == (err == nil) {
			t.Fatalf("%d, %v", len(r), err)
		}
	})
}
