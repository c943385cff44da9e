package part_test

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vmscope/block"
	"vmscope/block/part"
	"vmscope/internal/guestlab"
)

// run runs a program and gives what it prints.
func run(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	c := exec.Command(name, args...)
	c.Stdin = strings.NewReader(stdin)
	var errs strings.Builder
	c.Stderr = &errs
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, out, errs.String())
	}
	return string(out)
}

// image makes an empty image.
func image(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, path string) *block.File {
	t.Helper()
	f, err := block.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// exported reads lines of NAME=value.
func exported(out string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(out) {
		k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		m[k] = v
	}
	return m
}

// What blkid says of what the usual programs make, we say.
func TestIdentifyAsBlkid(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		name string
		size int64
		make []string // IMG stands for the image
	}{
		{"ext2", 8 * mib, []string{"mkfs.ext2", "-q", "-L", "old one", "IMG"}},
		{"ext2 revision 0", 8 * mib, []string{"sh", "-c", "mkfs.ext2 -q -E revision=0 IMG || mkfs.ext2 -q -r 0 IMG"}},
		{"ext3", 8 * mib, []string{"mkfs.ext3", "-q", "-L", "0123456789abcdef", "IMG"}},
		{"ext4", 8 * mib, []string{"mkfs.ext4", "-q", "-L", "grün", "IMG"}},
		{"ext4 without a journal", 8 * mib, []string{"mkfs.ext4", "-q", "-O", "^has_journal", "-b", "1024", "IMG"}},
		{"ext4 64k", 128 * mib, []string{"mkfs.ext4", "-qF", "-b", "65536", "IMG"}},
		{"journal device", 8 * mib, []string{"mkfs.ext4", "-q", "-O", "journal_dev", "IMG"}},
		{"xfs", 300 * mib, []string{"mkfs.xfs", "-q", "-L", "data", "IMG"}},
		{"btrfs", 120 * mib, []string{"mkfs.btrfs", "-q", "-L", "tree", "IMG"}},
		{"fat12", 2 * mib, []string{"mkfs.vfat", "-n", "FLOPPY", "IMG"}},
		{"fat16", 30 * mib, []string{"mkfs.vfat", "-F", "16", "-n", "BOOT DISK", "IMG"}},
		{"fat32", 64 * mib, []string{"mkfs.vfat", "-F", "32", "-n", "EFI", "IMG"}},
		{"fat32 without a label", 64 * mib, []string{"mkfs.vfat", "-F", "32", "IMG"}},
		{"fat 4k sectors", 64 * mib, []string{"mkfs.vfat", "-S", "4096", "-n", "FOUR", "IMG"}},
		{"exfat", 8 * mib, []string{"mkfs.exfat", "-L", "stick", "IMG"}},
		{"ntfs", 8 * mib, []string{"mkntfs", "-q", "-Q", "-F", "-L", "Windows", "IMG"}},
		{"swap", 8 * mib, []string{"mkswap", "-L", "swapped", "IMG"}},
		{"swap 64k", 8 * mib, []string{"mkswap", "-p", "65536", "IMG"}},
		{"luks1", 8 * mib, []string{"sh", "-c", "echo secret | cryptsetup -q luksFormat --type luks1 --pbkdf-force-iterations 1000 IMG -"}},
		{"luks2", 32 * mib, []string{"sh", "-c", "echo secret | cryptsetup -q luksFormat --type luks2 --label vault --pbkdf pbkdf2 --pbkdf-force-iterations 1000 IMG -"}},
		{"squashfs", 0, []string{"sh", "-c", "mksquashfs /etc/passwd IMG -noappend -quiet -no-progress >/dev/null 2>&1"}},
		{"iso9660", 0, []string{"genisoimage", "-quiet", "-V", "CD of mine", "-o", "IMG", "/etc/passwd"}},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			path := image(t, c.size)
			var args []string
			for _, a := range c.make {
				args = append(args, strings.ReplaceAll(a, "IMG", path))
			}
			tool := args[0]
			if tool == "sh" {
				for _, name := range []string{"cryptsetup", "mksquashfs", "mkfs.ext2"} {
					if strings.Contains(args[2], name+" ") {
						tool = name
					}
				}
			}
			guestlab.Need(t, "blkid", tool)
			run(t, "", args[0], args[1:]...)
			asBlkid(t, path)
		})
	}
}

// A member of a Linux RAID, in each version, is what blkid calls it.
func TestRAIDAsBlkid(t *testing.T) {
	guestlab.Need(t, "blkid")
	const size = 8 << 20
	le := binary.LittleEndian
	v1 := func(off int64) []byte {
		b := make([]byte, 1024)
		le.PutUint32(b, 0xa92b4efc)
		le.PutUint32(b[4:], 1)
		copy(b[16:], "0123456789abcdef")
		copy(b[32:], "host:array")
		le.PutUint64(b[80:], 8192)
		le.PutUint32(b[92:], 2)
		le.PutUint64(b[128:], 2048)
		le.PutUint64(b[136:], 8192)
		le.PutUint64(b[144:], uint64(off/512))
		le.PutUint32(b[220:], 2) // roles
		sum := uint64(0)
		for i := 0; i < 260; i += 4 {
			sum += uint64(le.Uint32(b[i:]))
		}
		le.PutUint32(b[216:], uint32(sum)+uint32(sum>>32))
		return b
	}
	v090 := func(int64) []byte {
		b := make([]byte, 4096)
		for i, v := range map[int]uint32{0: 0xa92b4efc, 8: 90, 12: 3, 16: 0, 20: 0x11223344, 28: 1, 32: 4000, 36: 2, 40: 2, 52: 0x55667788, 56: 0x99aabbcc, 60: 0xddeeff00} {
			le.PutUint32(b[i:], v)
		}
		sum := uint64(0)
		for i := 0; i < 4096; i += 4 {
			sum += uint64(le.Uint32(b[i:]))
		}
		le.PutUint32(b[37*4+4:], uint32(sum)+uint32(sum>>32))
		return b
	}
	for _, c := range []struct {
		version string
		off     int64
		super   func(int64) []byte
	}{{"1.0", size - 8192, v1}, {"1.1", 0, v1}, {"1.2", 4096, v1}, {"0.90.3", size - 65536, v090}} {
		path := image(t, size)
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt(c.super(c.off), c.off)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		asBlkid(t, path)
		if got, _ := part.Identify(open(t, path)); got.Version != c.version {
			t.Errorf("%s: %+v", c.version, got)
		}
	}
}

// asBlkid compares what we say of a file with what blkid says.
func asBlkid(t *testing.T, path string) {
	t.Helper()
	got, err := part.Identify(open(t, path))
	if err != nil {
		t.Fatal(err)
	}
	out := run(t, "", "blkid", "-p", "-o", "udev", "-u", "filesystem,raid,crypto,other", path)
	want := exported(out)
	// ENC values are hex-escaped, the others lose special characters.
	label := unhex(want["ID_FS_LABEL_ENC"])
	if got.Type != want["ID_FS_TYPE"] || !strings.EqualFold(got.UUID, unhex(want["ID_FS_UUID_ENC"])) || got.Label != label {
		t.Errorf("%+v, blkid says\n%s", got, out)
	}
	if v := want["ID_FS_VERSION"]; got.Version != "" && got.Version != v {
		t.Errorf("version %q, blkid says %q", got.Version, v)
	}
}

// unhex undoes udev's \x20.
func unhex(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if i+3 < len(s) && s[i] == '\\' && s[i+1] == 'x' {
			hi, lo := strings.IndexByte("0123456789abcdef", s[i+2]), strings.IndexByte("0123456789abcdef", s[i+3])
			b.WriteByte(byte(hi<<4 | lo))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// scan scans images as one machine's disks.
func scan(t *testing.T, paths ...string) *part.Layout {
	t.Helper()
	var disks []part.Disk
	for i, p := range paths {
		disks = append(disks, part.Disk{Name: "vd" + string(rune('a'+i)), Dev: open(t, p)})
	}
	l, err := part.Scan(context.Background(), disks...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
