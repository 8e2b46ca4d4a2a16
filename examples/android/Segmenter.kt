import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import android.graphics.Bitmap
import java.nio.ByteBuffer

/** An exported network. [height] and [width] are those of `--size`; use one instance per thread. */
class Segmenter(model: ByteArray, private val height: Int, private val width: Int) : AutoCloseable {
    private val environment = OrtEnvironment.getEnvironment()
    private val session = environment.createSession(model, OrtSession.SessionOptions())

    /** Class of every pixel of an image, row by row. */
    fun labels(image: Bitmap): IntArray {
        val factor = minOf(height.toFloat() / image.height, width.toFloat() / image.width)
        val rows = (image.height * factor + 0.5f).toInt().coerceIn(1, height)
        val columns = (image.width * factor + 0.5f).toInt().coerceIn(1, width)
        val colors = IntArray(rows * columns)
        Bitmap.createScaledBitmap(image, columns, rows, true)
            .getPixels(colors, 0, columns, 0, 0, columns, rows)
        val pixels = ByteBuffer.allocateDirect(height * width * 3)
        for (y in 0 until height) for (x in 0 until width) {
            val color = if (y < rows && x < columns) colors[y * columns + x] else PADDING
            for (shift in intArrayOf(16, 8, 0)) pixels.put((color shr shift).toByte())
        }
        pixels.rewind()
        val shape = longArrayOf(1, height.toLong(), width.toLong(), 3)
        OnnxTensor.createTensor(environment, pixels, shape, OnnxJavaType.UINT8).use { input ->
            session.run(mapOf("image" to input)).use { results ->
                val output = results[0] as OnnxTensor
                val logits = FloatArray(output.floatBuffer.remaining()).also { output.floatBuffer.get(it) }
                val grid = output.info.shape.map { it.toInt() } // 1, classes, rows, columns
                val sizes = intArrayOf(
                    grid[1], grid[2], grid[3], height, width, rows, columns, image.height, image.width,
                )
                return upsampleArgmax(logits, sizes)
            }
        }
    }

    override fun close() = session.close()

    private external fun upsampleArgmax(logits: FloatArray, sizes: IntArray): IntArray

    private companion object {
        const val PADDING = 0x7C7468 // 124, 116, 104: the mean of the training images

        init {
            System.loadLibrary("segmenter")
        }
    }
}
