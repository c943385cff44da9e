// Command parents lists a guest's programs, each with the file it was started
// from and the process that started it: it follows pointers.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"vmscope"
	"vmscope/ctype"
	"vmscope/mem"
)

func main() {
	err := vmscope.Look(context.Background(), os.Args[1], func(v *vmscope.View) error {
		idle, err := v.Var("init_task")
		if err != nil {
			return err
		}
		return v.ObjectsIn(idle, "tasks", "task_struct", "tasks", func(t ctype.Object) error {
			file, err := t.Text("mm.exe_file.f_path.dentry.d_name.name")
			if errors.Is(err, mem.ErrNotMapped) {
				return nil // mm is null: a thread of the kernel
			}
			pid, err2 := t.Number("pid")
			uid, err3 := t.Number("real_cred.uid")
			parent, err4 := t.Text("real_parent.group_leader.comm")
			fmt.Printf("%6d %5d %q %q\n", pid, uid, file, parent)
			return errors.Join(err, err2, err3, err4)
		})
	})
	if err != nil {
		log.Fatal(err)
	}
}
