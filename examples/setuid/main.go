// Command setuid lists the set-uid programs on the disk of a VM, which may be running, or in an image. With a second
// argument it looks into that file system: vda1, vg0/root, a UUID or a label.
package main

import (
	"context"
	"fmt"
	"io/fs"
	"log"
	"os"

	"vmscope"
	"vmscope/fsinfer/ext4"
)

func main() {
	name := ""
	if len(os.Args) > 2 {
		name = os.Args[2]
	}
	disk, err := vmscope.OpenFileSystem(context.Background(), os.Args[1], "", name)
	if err != nil {
		log.Fatal(err)
	}
	defer disk.Close()
	err = disk.Walk("/", func(path string, in *ext4.Inode, err error) error {
		if err == nil && in.IsRegular() && in.FileMode()&fs.ModeSetuid != 0 {
			fmt.Printf("%q of user %d\n", path, in.UID)
		}
		return nil // what cannot be read is passed over
	})
	if err != nil {
		log.Print(err)
	}
}
