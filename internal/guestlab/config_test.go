package guestlab

import (
	"slices"
	"strings"
	"testing"
)

func TestConfig(t *testing.T) {
	if _, err := (Config{Kernel: "no-such"}).withDefaults(); err == nil {
		t.Error("an unknown kernel was accepted")
	}
	if _, err := (Config{Kernel: "bookworm", Name: "a,b"}).withDefaults(); err == nil {
		t.Error("a name with a comma was accepted")
	}
	a, err := Config{Kernel: "bookworm"}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := (Config{Kernel: "bookworm"}).withDefaults(); a.Name == b.Name {
		t.Errorf("two guests are called %s", a.Name)
	}
	for ram, want := range map[RAM]string{SharedFile: "memory-backend-file,id=ram,size=512M,mem-path=/d/ram,share=on", Memfd: "memory-backend-memfd,id=ram,size=512M,share=on", Anonymous: ""} {
		a.RAM = ram
		args := a.qemuArgs("vmlinuz", runDir{path: "/d"})
		if got := strings.Contains(strings.Join(args, " "), "memory-backend="); got != (want != "") {
			t.Errorf("%v: %q", ram, args)
		}
		if want != "" && !slices.Contains(args, want) {
			t.Errorf("%v: %q lacks %q", ram, args, want)
		}
		if strings.Contains(strings.Join(args, " "), "kaslr") {
			t.Errorf("KASLR is touched: %q", args)
		}
		if back, err := ParseRAM(ram.String()); err != nil || back != ram {
			t.Errorf("%v read back as %v, %v", ram, back, err)
		}
	}
}

func TestParseKallsyms(t *testing.T) {
	got, err := parseKallsyms("ffffffff81000000 T _stext\nffffffffc0000000 t f\t[ext4]\n")
	want := []Symbol{{0xffffffff81000000, 'T', "_stext", ""}, {0xffffffffc0000000, 't', "f", "ext4"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := parseKallsyms("nonsense\n"); err == nil {
		t.Error("nonsense was read as a symbol")
	}
}
