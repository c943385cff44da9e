package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"

	"vmscope/internal/guestlab/wire"
)

// mountFlags are the options of mount(8) that are flags of mount(2); the file system reads all others itself.
var mountFlags = map[string]uintptr{
	"ro": syscall.MS_RDONLY, "rw": 0, "sync": syscall.MS_SYNCHRONOUS, "dirsync": syscall.MS_DIRSYNC,
	"noatime": syscall.MS_NOATIME, "nodiratime": syscall.MS_NODIRATIME, "relatime": syscall.MS_RELATIME,
	"strictatime": syscall.MS_STRICTATIME, "lazytime": 1 << 25, "remount": syscall.MS_REMOUNT,
}

func mounting(m *wire.Mounting) error {
	if m.Unmount {
		if err := syscall.Unmount(m.Dir, 0); err != nil {
			return fmt.Errorf("unmount %s: %w", m.Dir, err)
		}
		return nil
	}
	if err := os.MkdirAll(m.Dir, 0o755); err != nil {
		return err
	}
	var flags uintptr
	var data []string
	for _, o := range strings.Split(m.Options, ",") {
		flag, ok := mountFlags[o]
		if flags |= flag; !ok && o != "" {
			data = append(data, o)
		}
	}
	if err := syscall.Mount(m.Device, m.Dir, m.Type, flags, strings.Join(data, ",")); err != nil {
		return fmt.Errorf("mount -t %s -o %q %s %s: %w", m.Type, m.Options, m.Device, m.Dir, err)
	}
	return nil
}
