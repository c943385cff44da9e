package qemu

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// config is what a command line of QEMU says about the machine. The command
// line was written by whoever started it; nothing depends on its being true but
// where we look first.
type config struct {
	name    string
	arch    string // of the emulator: "x86_64", "aarch64", …; "" unknown
	machine string // type as written, without version where it is a known board
	accel   string
	ram     uint64 // bytes of main memory; 0: not told
	lowMax  uint64 // max-ram-below-4g; 0: not told
	memPath string // -mem-path
	// backends in the order in which they make up main memory.
	backends []backend
	dimms    bool     // memory devices beside main memory, or room for some
	qmp      []qmpEnd // control monitors
	raw      string   // the command line as it is
	secret   string   // type of the confidential-guest object, "" if none
	domid    string   // -xen-domid: whose device model it is; "" if of none
}

// backend is a memory-backend object.
type backend struct {
	id, typ, path string
	size, off     uint64 // off: in the file at path
	shared        bool
	made          int // how many were made before it
}

// qmpEnd is where a control monitor listens: at a path, or at a descriptor that
// QEMU inherited.
type qmpEnd struct {
	path    string
	fd      int
	libvirt bool // libvirt made it for itself, and holds it
}

// opts is a parsed QemuOpts string or its JSON form.
type opts map[string]string

// parseOpts splits "a=b,c=d", where ",," is a comma within a value. implied is
// the key of a first element without "=". A later element without "=" is a
// switch that is on, or with the prefix "no", off.
func parseOpts(s, implied string) opts {
	o := opts{}
	if strings.HasPrefix(s, "{") {
		var j map[string]any
		if json.Unmarshal([]byte(s), &j) == nil {
			for k, v := range j {
				switch v := v.(type) {
				case string:
					o[k] = v
				case bool:
					o[k] = map[bool]string{true: "on", false: "off"}[v]
				case float64:
					o[k] = strconv.FormatFloat(v, 'f', -1, 64)
				}
			}
			return o
		}
	}
	for i := 0; s != ""; i++ {
		var el strings.Builder
		for s != "" {
			if s[0] == ',' {
				if !strings.HasPrefix(s, ",,") {
					s = s[1:]
					break
				}
				s = s[1:]
			}
			el.WriteByte(s[0])
			s = s[1:]
		}
		k, v, ok := strings.Cut(el.String(), "=")
		switch {
		case ok:
			o[k] = v
		case i == 0 && implied != "":
			o[implied] = k
		case strings.HasPrefix(k, "no") && len(k) > 2:
			o[k], o[k[2:]] = "on", "off"
		case k != "":
			o[k] = "on"
		}
	}
	return o
}

func (o opts) on(key string) bool {
	switch o[key] {
	case "on", "yes", "true", "y":
		return true
	}
	return false
}

// size parses a size of QEMU: a number, also with a fraction, and a suffix
// B K M G T P E; unit is that of a number without suffix. 0: no size.
func size(s string, unit uint64) uint64 {
	if s == "" {
		return 0
	}
	// B and E are digits of a hexadecimal number.
	if i := strings.IndexByte("bkmgtpe", s[len(s)-1]|0x20); i >= 0 && !(strings.HasPrefix(s, "0x") && (i == 0 || i == 6)) {
		unit, s = 1<<(10*i), s[:len(s)-1]
	}
	if v, err := strconv.ParseUint(s, 0, 64); err == nil {
		if v > math.MaxUint64/unit {
			return 0
		}
		return v * unit
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !(f >= 0 && f*float64(unit) < 1<<63) {
		return 0
	}
	return uint64(f * float64(unit))
}

// bare are the options of QEMU that take no value. After any other the next
// argument is a value, whatever it looks like.
var bare = strings.Fields(`h help version S s daemonize enable-kvm nodefaults no-user-config nodefconfig
	no-reboot no-shutdown nographic snapshot usb full-screen no-acpi no-hpet win2k-hack no-fd-bootchk singlestep
	one-insn-per-tb mem-prealloc only-migratable no-quit alt-grab ctrl-grab portrait semihosting old-param
	enable-fips enable-sync-profile preconfig show-cursor curses no-frame sdl xen-attach xen-domid-restrict
	nouserconfig no-kvm no-kvm-irqchip no-kvm-pit no-kvm-pit-reinjection enable-nesting mem-lock`)

// parseArgs reads a command line, argument 0 included.
func parseArgs(args []string) config {
	var c config
	if len(args) == 0 {
		return c
	}
	c.arch = archOf(args[0])
	var (
		machine  = opts{}
		objects  = map[string]backend{}
		chardevs = map[string]opts{}
		nodes    = map[int]string{}
		control  []string
	)
	for i := 1; i < len(args); i++ {
		a := args[i]
		if !strings.HasPrefix(a, "-") || a == "-" {
			continue // a disk image
		}
		key := strings.TrimPrefix(strings.TrimPrefix(a, "-"), "-")
		if key == "enable-kvm" {
			c.accel = "kvm"
		}
		if slices.Contains(bare, key) || i+1 == len(args) {
			continue
		}
		i++
		v := args[i]
		switch key {
		case "name":
			c.name = parseOpts(v, "guest")["guest"]
		case "m":
			o := parseOpts(v, "size")
			if n := size(o["size"], 1<<20); n > 0 {
				c.ram = n
			}
			if o["maxmem"] != "" { // what was added since does not stand here
				c.dimms = true
			}
		case "M", "machine":
			for k, x := range parseOpts(v, "type") {
				machine[k] = x
			}
		case "accel":
			if c.accel == "" {
				c.accel = parseOpts(v, "accel")["accel"]
			}
		case "mem-path":
			c.memPath = v
		case "xen-domid":
			c.domid = v
		case "object":
			o := parseOpts(v, "qom-type")
			switch typ := o["qom-type"]; {
			case strings.HasPrefix(typ, "memory-backend-"):
				b := backend{id: o["id"], typ: strings.TrimPrefix(typ, "memory-backend-"), path: o["mem-path"], size: size(o["size"], 1), off: size(o["offset"], 1), shared: o.on("share"), made: len(objects)}
				if b.typ == "memfd" && o["share"] == "" { // its default
					b.shared = true
				}
				objects[b.id] = b
			case typ == "sev-guest", typ == "sev-snp-guest", typ == "tdx-guest", typ == "pef-guest", typ == "s390-pv-guest":
				c.secret = typ
			}
		case "numa":
			o := parseOpts(v, "type")
			if o["type"] == "node" && o["memdev"] != "" {
				id, err := strconv.Atoi(o["nodeid"])
				if err != nil {
					id = len(nodes)
				}
				nodes[id] = o["memdev"]
			}
		case "device":
			switch parseOpts(v, "driver")["driver"] {
			case "pc-dimm", "nvdimm", "virtio-mem-pci", "virtio-mem", "virtio-pmem-pci":
				c.dimms = true
			}
		case "chardev":
			o := parseOpts(v, "backend")
			chardevs[o["id"]] = o
		case "mon":
			if o := parseOpts(v, "chardev"); o["mode"] == "control" {
				control = append(control, o["chardev"])
			}
		case "qmp", "qmp-pretty":
			if p, ok := strings.CutPrefix(v, "unix:"); ok {
				if o := parseOpts(p, "path"); o.on("server") {
					c.qmp = append(c.qmp, qmpEnd{path: o["path"], fd: -1})
				}
			} else if id, ok := strings.CutPrefix(v, "chardev:"); ok {
				control = append(control, id)
			}
		}
	}
	for _, id := range control {
		// Without server it is QEMU that connects, to a daemon (Proxmox's qmeventd).
		if o := chardevs[id]; o["backend"] == "socket" && o.on("server") {
			libvirt := id == "charmonitor" // src/qemu/qemu_command.c
			if fd, err := strconv.Atoi(o["fd"]); err == nil {
				c.qmp = append(c.qmp, qmpEnd{fd: fd, libvirt: libvirt})
			} else if o["path"] != "" {
				c.qmp = append(c.qmp, qmpEnd{path: o["path"], fd: -1, libvirt: libvirt})
			}
		}
	}
	c.machine = board(machine["type"])
	c.lowMax = size(machine["max-ram-below-4g"], 1)
	if a := machine["accel"]; a != "" {
		c.accel = a
	}
	c.accel, _, _ = strings.Cut(c.accel, ":")
	main := machine["memory-backend"]
	if b, ok := objects[main]; ok {
		c.backends = []backend{b}
	} else if len(nodes) > 0 {
		var ids []int
		for id := range nodes {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		for _, id := range ids {
			c.backends = append(c.backends, objects[nodes[id]])
		}
	}
	var sum uint64
	for _, b := range c.backends {
		sum += b.size
	}
	if sum > 0 {
		c.ram = sum
	}
	return c
}

// archOf tells the architecture by the name of the program.
func archOf(prog string) string {
	base := prog[strings.LastIndexByte(prog, '/')+1:]
	_, a, ok := strings.Cut(base, "qemu-system-")
	if !ok {
		return "" // qemu-kvm, kvm: the host's
	}
	// Some have more to their name: .qemu-system-x86_64-wrapped (Nix).
	end := strings.IndexFunc(a, func(r rune) bool { return r == '-' || r == '.' || r == ' ' })
	if end < 0 {
		end = len(a)
	}
	return a[:end]
}

// board drops the version of the boards whose layout is known.
func board(typ string) string {
	for _, b := range [...][2]string{{"pc-q35-", "q35"}, {"pc-i440fx-", "pc"}, {"virt-", "virt"}} {
		if strings.HasPrefix(typ, b[0]) {
			return b[1]
		}
	}
	return typ
}

// kinds lists the layouts that the machine may have, as kinds of vm.Layouts,
// the likeliest first.
func (c *config) kinds() []string {
	if c.lowMax > 0 && c.lowMax < 4<<30 {
		return []string{fmt.Sprintf("low=%d", c.lowMax), "x86"}
	}
	switch arch := c.arch; {
	case c.machine == "q35" || c.machine == "pc" || c.machine == "microvm":
		// max-ram-below-4g may stand in a file; old boards split elsewhere.
		return []string{c.machine, "x86"}
	case c.machine == "isapc":
		return []string{"flat"}
	case arch == "x86_64" || arch == "i386" || arch == "":
		return []string{"pc", "q35", "x86", ""}
	case (arch == "aarch64" || arch == "arm") && c.machine == "virt":
		return []string{"virt"}
	case strings.HasPrefix(arch, "riscv") && c.machine == "virt":
		return []string{"riscv-virt"}
	case arch == "aarch64" || arch == "arm":
		return []string{"virt", "flat"}
	}
	return []string{""}
}
