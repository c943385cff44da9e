package qemu

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"vmscope/internal/procram"
)

func TestParseArgs(t *testing.T) {
	const m, g = 1 << 20, 1 << 30
	for _, c := range []struct {
		name string
		args []string
		want config
	}{
		{"nothing told", nil, config{}},
		{"plain", []string{"-name", "web1", "-m", "512", "-M", "q35"}, config{name: "web1", ram: 512 * m, machine: "q35"}},
		{"two dashes, suffix", []string{"--name", "web1", "--m", "4G"}, config{name: "web1", ram: 4 * g}},
		{"fraction", []string{"-m", "1.5G"}, config{ram: 1536 * m}},
		{
			"as libvirt does",
			[]string{
				"-name", "guest=a,,b=c,debug-threads=on", "-machine", "pc-q35-7.2,usb=off,memory-backend=pc.ram", "-accel", "kvm",
				"-m", "size=2097152k,slots=16,maxmem=8388608k",
				"-object", `{"qom-type":"memory-backend-memfd","id":"pc.ram","share":true,"x-use-canonical-path-for-ramblock-id":false,"size":2147483648}`,
				"-chardev", "socket,id=charmonitor,fd=24,server=on,wait=off", "-mon", "chardev=charmonitor,id=monitor,mode=control",
			},
			config{
				name: "a,b=c", machine: "q35", accel: "kvm", ram: 2 * g, dimms: true, qmp: []qmpEnd{{fd: 24, libvirt: true}},
				backends: []backend{{id: "pc.ram", typ: "memfd", shared: true, size: 2 * g}},
			},
		},
		{
			"two nodes, out of order",
			[]string{
				"-m", "3G", "-object", "memory-backend-ram,id=b,size=1G", "-object", "memory-backend-file,id=a,size=2G,mem-path=/dev/shm/x,share=on",
				"-numa", "node,nodeid=1,memdev=b", "-numa", "node,nodeid=0,memdev=a",
			},
			config{ram: 3 * g, backends: []backend{{id: "a", typ: "file", path: "/dev/shm/x", size: 2 * g, shared: true, made: 1}, {id: "b", typ: "ram", size: g}}},
		},
		{"value that looks like an option", []string{"-append", "-m", "-m", "1G"}, config{ram: g}},
		{"switch takes no value", []string{"-nographic", "-m", "1G", "-enable-kvm", "-name", "x"}, config{ram: g, accel: "kvm", name: "x"}},
		{"monitors", []string{"-qmp", "unix:/run/a b,server=on,wait=off", "-qmp", "tcp:localhost:4444", "-monitor", "unix:/run/hmp,server"}, config{qmp: []qmpEnd{{path: "/run/a b", fd: -1}}}},
		{
			"as Proxmox does",
			[]string{
				"-id", "100", "-name", "web1,debug-threads=on", "-no-shutdown", "-chardev", "socket,id=qmp,path=/run/100.qmp,server=on,wait=off", "-mon", "chardev=qmp,mode=control",
				"-chardev", "socket,id=qmp-event,path=/run/qmeventd.sock,reconnect=5", "-mon", "chardev=qmp-event,mode=control", "-daemonize", "-m", "2048",
			},
			config{name: "web1", ram: 2 * g, qmp: []qmpEnd{{path: "/run/100.qmp", fd: -1}}},
		},
		{"connects to a monitor's other end", []string{"-qmp", "unix:/run/a", "-qmp", "unix:/run/b,server,nowait"}, config{qmp: []qmpEnd{{path: "/run/b", fd: -1}}}},
		{"encrypted", []string{"-object", "sev-snp-guest,id=sev0,cbitpos=51", "-machine", "q35,confidential-guest-support=sev0"}, config{machine: "q35", secret: "sev-snp-guest"}},
		{"encrypted, as libvirt does", []string{"-object", `{"qom-type":"tdx-guest","id":"lsec0"}`, "-machine", "q35,confidential-guest-support=lsec0"}, config{machine: "q35", secret: "tdx-guest"}},
		{
			"as Xen's toolstack does",
			[]string{
				"-xen-domid", "3", "-no-shutdown", "-chardev", "socket,id=libxl-cmd,path=/var/run/xen/qmp-libxl-3,server=on,wait=off", "-mon", "chardev=libxl-cmd,mode=control",
				"-nodefaults", "-no-user-config", "-xen-attach", "-name", "web1", "-vnc", "none", "-display", "none", "-machine", "xenpv", "-m", "1024",
			},
			config{name: "web1", machine: "xenpv", ram: g, domid: "3", qmp: []qmpEnd{{path: "/var/run/xen/qmp-libxl-3", fd: -1}}},
		},
		{"hole moved", []string{"-M", "pc,max-ram-below-4g=1G", "-M", "accel=kvm:tcg"}, config{machine: "pc", lowMax: g, accel: "kvm"}},
		{"hot-plugged", []string{"-device", "pc-dimm,memdev=d"}, config{dimms: true}},
		{"cut off", []string{"-m"}, config{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.want.arch = "x86_64"
			if got := parseArgs(append([]string{"/usr/bin/qemu-system-x86_64"}, c.args...)); !reflect.DeepEqual(got, c.want) {
				t.Errorf("\n%+v, want\n%+v", got, c.want)
			}
		})
	}
}

func TestArchOf(t *testing.T) {
	for in, want := range map[string]string{
		"/usr/bin/qemu-system-x86_64": "x86_64", "qemu-system-aarch64": "aarch64", "/x/qemu-system-arm (deleted)": "arm", "/nix/bin/.qemu-system-i386-wrapped": "i386",
		"/usr/bin/qemu-system-x86_64-spice": "x86_64", "qemu-system-x86_64.real": "x86_64", "/usr/bin/kvm": "", "/usr/libexec/qemu-kvm": "", "": "", "qemu-system-": "",
	} {
		if got := archOf(in); got != want {
			t.Errorf("archOf(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestSize(t *testing.T) {
	for in, want := range map[string]uint64{
		"512": 512 << 20, "1k": 1024, "2M": 2 << 20, "3g": 3 << 30, "1T": 1 << 40, "0x10M": 16 << 20, "7b": 7, "0.5G": 512 << 20,
		"": 0, "G": 0, "x": 0, "-1": 0, "99999999999999999999": 0, "18446744073709551615G": 0, "1e400": 0, "nan": 0, "infG": 0,
	} {
		if got := size(in, 1<<20); got != want {
			t.Errorf("size(%q) = %d, want %d", in, got, want)
		}
	}
}

func FuzzArgs(f *testing.F) {
	f.Add("-m\x00size=1G,slots=2\x00-name\x00guest=a,,b\x00-object\x00{\"qom-type\":\"memory-backend-ram\",\"size\":5}\x00-numa\x00node,memdev=a")
	f.Fuzz(func(t *testing.T, s string) {
		c := parseArgs(strings.Split("qemu-system-x86_64\x00"+s, "\x00"))
		if len(c.kinds()) == 0 {
			t.Error("no layout to try")
		}
	})
}

const someMaps = `55d0c0000000-55d0c0400000 r--p 00000000 08:01 123 /usr/bin/qemu-system-x86_64
55d0c2000000-55d0c2100000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0004000000 rw-p 00000000 00:00 0
7f0004000000-7f0004001000 ---p 00000000 00:00 0
7f0010000000-7f0012000000 rw-s 00000000 00:01 77 /memfd:memory-backend-memfd (deleted)
7f0012000000-7f0014000000 rw-s 02000000 00:01 77 /memfd:memory-backend-memfd (deleted)
7f0020000000-7f0020010000 rw-p 00000000 00:00 0
7f0020010000-7f0028010000 rw-p 00000000 00:00 0
7f0040ff0000-7f0045000000 rw-p 00000000 00:00 0
7f0050000000-7f0051000000 rw-s 00001000 00:1a 99 /dev/shm/my ram (deleted)
`

// TestCandidates: which mappings may be RAM of a given size.
func TestCandidates(t *testing.T) {
	maps, err := procram.ParseMaps(someMaps)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		w    backend
		want []uint64
	}{
		{"exact", backend{typ: "ram", size: 64 << 20}, []uint64{0x7f0000000000}},
		{"exact piece of joined ones", backend{typ: "ram", size: 128 << 20}, []uint64{0x7f0020010000}},
		{"the kernel joined something before it", backend{typ: "ram", size: 48 << 20}, []uint64{0x7f0001000000, 0x7f0042000000}},
		{"memfd", backend{typ: "memfd", size: 64 << 20}, []uint64{0x7f0010000000}},
		{"file", backend{typ: "file", size: 16 << 20}, []uint64{0x7f0050000000}},
		{"too large", backend{typ: "ram", size: 1 << 30}, nil},
	} {
		var got []uint64
		for _, b := range candidates(1, c.w, maps) {
			got = append(got, b.HVA)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
	}
}

// TestAlike: backends of one size are told apart by when they were made.
func TestAlike(t *testing.T) {
	maps, err := procram.ParseMaps(`7f0000000000-7f0004000000 rw-p 00000000 00:00 0
7f0010000000-7f0014000000 rw-s 00000000 00:01 9 /memfd:memory-backend-memfd (deleted)
7f0020000000-7f0024000000 rw-s 00000000 00:01 7 /memfd:memory-backend-memfd (deleted)
7f0040000000-7f0044000000 rw-p 00000000 00:00 0
`)
	if err != nil {
		t.Fatal(err)
	}
	for typ, made := range map[string][2]uint64{"ram": {0x7f0040000000, 0x7f0000000000}, "memfd": {0x7f0020000000, 0x7f0010000000}} {
		for first := range 2 { // node 0 has the first made, the second
			c := config{backends: []backend{{id: "a", typ: typ, size: 64 << 20, made: first}, {id: "b", typ: typ, size: 64 << 20, made: 1 - first}}}
			b, sure, err := findBlocks(0, &c, maps)
			if err != nil || sure || len(b) != 2 || b[0].HVA != made[first] || b[1].HVA != made[1-first] {
				t.Errorf("%s: %+v, %t, %v", typ, b, sure, err)
			}
		}
	}
}

func FuzzMaps(f *testing.F) {
	f.Add(someMaps, uint64(64<<20))
	f.Fuzz(func(t *testing.T, s string, size uint64) {
		maps, err := procram.ParseMaps(s)
		if err != nil {
			return
		}
		for _, v := range maps {
			if v.End <= v.Start {
				t.Fatalf("%+v", v)
			}
		}
		for _, b := range candidates(0, backend{typ: "ram", size: max(size%(1<<40), 1)}, maps) {
			if b.HVA < b.Mapping.Start || b.HVA+b.Size > b.Mapping.End {
				t.Fatalf("block %+v outside of its mapping", b)
			}
		}
	})
}

func TestDropForks(t *testing.T) {
	p := func(pid int, raw string) Process {
		return Process{PID: pid, Program: "qemu-system-x86_64", conf: config{raw: raw}}
	}
	got := dropForks([]Process{p(10, "a"), p(11, "a"), p(12, "b"), p(13, "a")}, map[int]int{10: 1, 11: 10, 12: 10, 13: 1})
	if len(got) != 3 || got[1].PID != 12 || got[2].PID != 13 {
		t.Errorf("%+v", got)
	}
}
